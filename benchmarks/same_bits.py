"""Whether a change of structure changes what is learnt: `python -m benchmarks.same_bits --checkout DIR`.

Trains the same short runs in another checkout (`git worktree add DIR COMMIT`) and in this one, on this
machine, and compares adapters and metrics bit for bit: the default, a critic with GAE, DDPO, replay, two
processes, and a run that was resumed. What a checkout has made is kept beside its commit and not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file

from common.errors import friendly_errors
from common.flags import flag, parse

ROOT = Path(__file__).parents[1]
SHORT = (
    *("--concept", "Van Gogh style", "--images_per_iteration", "8", "--retain_rollouts", "8"),
    *(
        "--num_vocabulary_prompts",
        "8",
        "--retain_batch_size",
        "4",
        "--warmup_rollouts",
        "16",
        "--train_batch_size",
        "4",
        "--rank",
        "4",
    ),
    *("--critic_warmup_steps", "20", "--critic_steps", "5", "--cooldown_updates", "1"),
    *("--validation_steps", "0", "--evaluation_seeds", "--report_to", "none"),
    *("--checkpointing_steps", "1", "--overwrite_output_dir"),
)
ITERATIONS = 3
RUNS: dict[str, tuple[str, ...]] = {
    "default": (),
    "critic with gae": ("--advantage", "gae"),
    "ddpo": ("--advantage", "ddpo"),
    "replay": ("--replay_iterations", "1", "--gamma", "0.5"),
    "two processes": (),
    "resumed": (),
}


def train(checkout: Path, name: str, directory: Path) -> None:
    """Run `RUNS[name]` of a checkout."""
    launch = [sys.executable]
    if name == "two processes":
        launch += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, "train_unlearn_lora.py", *SHORT, *RUNS[name], "--output_dir", str(directory)]
    ends = [ITERATIONS - 1, ITERATIONS] if name == "resumed" else [ITERATIONS]
    for i, end in enumerate(ends):
        resume = ["--resume_from_checkpoint", "latest"] if i else []
        line = [*command, "--max_train_iterations", str(end), *resume]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(line, cwd=checkout, env=environment, check=True, capture_output=True)


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of the adapter's tensors, and of the metrics that every iteration has."""
    weights = hashlib.sha256()
    for name, tensor in sorted(load_file(directory / LORA_WEIGHT_NAME_SAFE).items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    metrics = hashlib.sha256((directory / "diagnostics.jsonl").read_bytes())
    return {"adapter": weights.hexdigest(), "metrics": metrics.hexdigest()}


def record(checkout: Path, names: Sequence[str], cache: Path) -> dict[str, dict[str, str]]:
    """The digests of a checkout's runs; those that `cache` holds for its commit, if nothing is
    uncommitted, are kept."""
    git = ["git", "-C", str(checkout)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    status = subprocess.run(
        [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    path = cache / f"{commit.strip()}.json"
    found = json.loads(path.read_text()) if path.is_file() and not status else {}
    for name in names:
        if name not in found:
            with tempfile.TemporaryDirectory() as directory:
                train(checkout, name, Path(directory) / "run")
                found[name] = digests(Path(directory) / "run")
        if not status:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2) + "\n")
    return found


@dataclass(frozen=True)
class ComparisonConfig:
    """Comparison."""

    checkout: Path = flag(help="The checkout to compare with.")
    runs: tuple[str, ...] = flag(tuple(RUNS), choices=tuple(RUNS), help="Which runs.")
    cache: Path = flag(Path("runs/same_bits"), help="Where digests of commits are kept.")


def parse_config(arguments: Sequence[str] | None = None) -> ComparisonConfig:
    """The settings of a command line."""
    return parse(ComparisonConfig, arguments, __doc__, prog="python -m benchmarks.same_bits")


def main() -> int:
    config = parse_config()
    before, after = (record(checkout, config.runs, config.cache) for checkout in (config.checkout, ROOT))
    for name in config.runs:
        same = before[name] == after[name]
        print(f"{name:<16} {'the same bits' if same else 'DIFFERENT'}", flush=True)
    return int(any(before[name] != after[name] for name in config.runs))


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main())
