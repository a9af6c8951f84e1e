"""A long run of a very small configuration, watched for what grows: `python -m tests.soak --output_dir
DIR`.

The training script runs with a critic, previews, checkpoints and logs in one process of its own; from
outside, memory, open files, threads and the output directory are read once an iteration at most. The metrics
are slopes over the second half of the run, where whatever is made once has been made. Linux only: the
system's own account of a process is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "concept": "Van Gogh style",
    "advantage": "pathwise",
    "gamma": 0.5,  # has a critic asked
    "num_inference_steps": 2,
    "masked_steps": 0,
    "guidance_scale": 1.0,
    "train_batch_size": 4,
    "images_per_iteration": 1,
    "retain_rollouts": 4,
    "retain_batch_size": 1,
    "warmup_rollouts": 8,
    "critic_warmup_steps": 10,
    "critic_steps": 2,
    "critic_batch_size": 16,
    "critic_buffer_iterations": 2,
    "rank": 2,
    "validation_steps": 100,
    "num_validation_images": 2,
    "checkpointing_steps": 20,
    "checkpoints_total_limit": 2,
    # So small a step that the run stays where it is, and bounds that end nothing: what is watched is the
    # machine.
    "learning_rate": 1e-7,
    "target_unlearning_accuracy": 1.1,
    "max_retain_drop": 1e9,
    "max_retain_kl": 1e9,
    "max_step_kl": 1e9,
}


@dataclass(frozen=True)
class Sample:
    """What a process holds after so many iterations.

    Attributes:
        memory: resident, in KB.
        checkpoints: of them, in the output directory.
        disk: bytes of the output directory without checkpoints and previews, whose number the settings
            decide.
    """

    iteration: int
    memory: float
    files: int
    threads: int
    checkpoints: int
    disk: int


LIMITS = {"memory": 20.0, "files": 0.0, "threads": 0.0, "checkpoints": 0.0, "disk": 12_000.0}
"""By how much each may grow an iteration: 20 KB of memory are 2 % of what the run holds in 1,000
iterations, where the allocator's own ups and downs are 1 %; the disk gets a line of metrics an iteration
and the tracker's copy of it."""
TOLERANCE = 1e-3
"""What a slope of whole numbers may be by a sample that fell into the writing of a file."""


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="Where the run and endurance.json are written: a new or an empty directory.",
    )
    parser.add_argument("--iterations", type=int, default=2000, help="Iterations of the run.")
    args = parser.parse_args(input_args)
    samples = watch(args.output_dir / "run", args.iterations)
    slopes = growth(samples)
    first, last = samples[len(samples) // 2], samples[-1]
    print(f"iterations {first.iteration} to {last.iteration}, {len(samples)} samples")
    for name, slope in slopes.items():
        print(
            f"{name:<12}{getattr(first, name):>14,.0f} -> {getattr(last, name):>14,.0f}   {slope:+.4f} an iteration, limit {LIMITS[name]:g}"
        )
    report = {
        "iterations": last.iteration,
        "slopes": slopes,
        "limits": LIMITS,
        "samples": [vars(sample) for sample in samples],
    }
    (args.output_dir / "endurance.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    grown = beyond(slopes)
    if grown:
        sys.exit(f"error: {', '.join(grown)} grew beyond the limit.")


def watch(output_dir: Path, iterations: int) -> list[Sample]:
    """Run the training script and return a sample of every iteration that was caught.

    Raises:
        SystemExit: the run failed.
    """
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    options += [
        "--output_dir",
        str(output_dir),
        "--max_train_iterations",
        str(iterations),
        "--evaluation_seeds",
    ]
    samples: list[Sample] = []
    diagnostics = output_dir / "diagnostics.jsonl"
    process = subprocess.Popen([sys.executable, str(ROOT / "train_unlearn_lora.py"), *options], cwd=ROOT)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            done = diagnostics.read_bytes().count(b"\n") if diagnostics.is_file() else 0
            # The first iterations still make what is made once, and after the last the run goes on to its
            # files.
            if (
                10 <= done < iterations
                and (not samples or done > samples[-1].iteration)
                and (sample := look(process.pid, output_dir, done))
            ):
                samples.append(sample)
    finally:
        process.terminate()
        process.wait()
    if process.returncode or len(samples) < 4:
        sys.exit(f"error: the run ended with {process.returncode} after {len(samples)} samples.")
    return samples


def look(pid: int, output_dir: Path, iteration: int) -> Sample | None:
    """What the process and its directory hold now; None if either was changing under the look."""
    place = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        checkpoints = [path for path in output_dir.iterdir() if path.name.startswith("checkpoint-")]
        disk = sum(
            path.stat().st_size
            for path in output_dir.rglob("*")
            if path.is_file()
            and not any(
                part.startswith((".", "checkpoint-", "previews"))
                for part in path.relative_to(output_dir).parts
            )
        )
        files = len(os.listdir(place / "fd"))
    except (OSError, ValueError):
        return None
    return Sample(
        iteration, float(status["VmRSS"].split()[0]), files, int(status["Threads"]), len(checkpoints), disk
    )


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """The slope an iteration of every figure over the second half; of memory that of the least of each
    tenth, which passing needs do not lift."""
    half = list(samples[len(samples) // 2 :])
    tenths = [half[i * len(half) // 10 : (i + 1) * len(half) // 10] for i in range(10)]
    least = [min(part, key=lambda sample: sample.memory) for part in tenths if part]
    return {name: slope(least if name == "memory" else half, name) for name in LIMITS}


def slope(samples: Sequence[Sample], name: str) -> float:
    """Of a straight line through a figure, by least squares."""
    return float(
        np.polyfit(
            [sample.iteration for sample in samples], [getattr(sample, name) for sample in samples], 1
        )[0]
    )


def beyond(slopes: dict[str, float]) -> list[str]:
    """The metrics that grow by more than their limits."""
    return [name for name, value in slopes.items() if value > LIMITS[name] + TOLERANCE]
