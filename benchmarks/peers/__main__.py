"""Our trainer beside TRL's DDPOTrainer: `python -m benchmarks.peers`.

TRL 0.23.1 is the last release with a DDPOTrainer; it is installed with this project into an environment of
its own, `OUTPUT_DIR/env`. Three runs for each concept and seed, one after the other: the peer, our trainer
with the peer's algorithm, our
    trainer as it is. Same pipeline,
prompts, finished-image reward and seeds; every image is judged by the same judge, and judging is on nobody's
clock. The peer runs at each of --peer_learning_rates, each a row of the table. A run is one JSON file, and
what is there is not run again. Written are peers.md and peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.ablation.report import reached

PEER, MATCHED, OURS = "TRL DDPO", "ours, the peer's algorithm", "ours"
PEER_RELEASE = "trl==0.23.1"


def make_environment(directory: Path) -> Path:
    """The Python of an environment with the peer and this project, made once."""
    python = directory / "bin" / "python"
    if not (directory / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "-c",
                "constraints.txt",
                PEER_RELEASE,
                "--editable",
                ".",
            ],
            check=True,
        )
        (directory / ".installed").touch()
    return python


def run(
    name: str, concept: str, seed: int, rate: float, args: argparse.Namespace, peer_python: Path
) -> dict[str, Any]:
    """One run, from its file where it exists.

    Raises:
        RuntimeError: it failed; the message names its log.
    """
    output = (
        args.output_dir
        / "runs"
        / f"{re.sub(r'[^a-z0-9.]+', '-', f'{name}-{concept}-{seed}-{rate:g}'.casefold())}.json"
    )
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        program = (
            [str(peer_python), "-m", "benchmarks.peers.trl_ddpo"]
            if name == PEER
            else [sys.executable, "-m", "benchmarks.peers.ours"]
        )
        given = [
            "--concept",
            concept,
            "--seed",
            str(seed),
            "--learning_rate",
            str(rate),
            "--every",
            str(args.every),
            "--output",
            str(output),
        ]
        given += [
            "--judge_seeds",
            *map(str, args.judge_seeds),
            "--budget",
            str(args.budget),
            *(["--matched"] if name == MATCHED else []),
        ]
        with output.with_suffix(".log").open("w") as log:
            code = subprocess.run([*program, *given], stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            raise RuntimeError(
                f"The run of {name} on {concept} ended with exit code {code}; see {output.with_suffix('.log')}"
            )
    return json.loads(output.read_text(encoding="utf-8")) | {
        "name": name,
        "concept": concept,
        "seed": seed,
        "learning_rate": rate,
    }


def seconds_to_target(found: dict[str, Any]) -> float | None:
    """Seconds until UA was at the target with IRA and CRA near the base's; None if that never was."""
    images = reached(found)
    return next((point["seconds"] for point in found["curve"] if point["images"] == images), None)


def table(runs: list[dict[str, Any]]) -> str:
    """One row a trainer: speed, and how far it got, summed or averaged over its runs."""
    lines = [
        "| trainer | learning rate | images a second | rollout | update | reached the target | images to it | seconds to it | UA | IRA | CRA |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rate in dict.fromkeys((found["name"], found["learning_rate"]) for found in runs):
        of = [found for found in runs if (found["name"], found["learning_rate"]) == (name, rate)]
        images = sum(found["images"] for found in of)
        per_second = [images / sum(found["seconds"] for found in of)] + [
            images / sum(f["parts"][part] for f in of) for part in ("rollout", "update")
        ]
        got = [(reached(found), seconds_to_target(found)) for found in of if reached(found) is not None]
        to_target = (
            [f"{sum(column) / len(got):.0f}" for column in zip(*got, strict=True)] if got else ["-", "-"]
        )
        end = [
            f"{sum(found['curve'][-1][figure] for found in of) / len(of):.1f}"
            for figure in ("UA", "IRA", "CRA")
        ]
        cells = [
            name,
            f"{rate:g}",
            *(f"{speed:.2f}" for speed in per_second),
            f"{len(got)} of {len(of)}",
            *to_target,
            *end,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=["Van Gogh style", "cat"],
        help="What to erase, each in runs of its own.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Training seeds.")
    parser.add_argument("--budget", type=int, default=1600, help="Images that a run may draw.")
    parser.add_argument("--every", type=int, default=2, help="Iterations between two judgements.")
    parser.add_argument(
        "--judge_seeds",
        nargs="+",
        type=int,
        default=[0, 1],
        help="One image a prompt and seed in every judgement.",
    )
    parser.add_argument(
        "--peer_learning_rates",
        nargs="+",
        type=float,
        default=[3e-3, 1e-2],
        help="What the peer's algorithm runs at.",
    )
    parser.add_argument("--learning_rate", type=float, default=1e-2, help="What ours runs at.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/peers"),
        help="Where environment, runs, table and JSON are written.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    python = make_environment(args.output_dir.resolve() / "env")
    matched = [(name, rate) for rate in args.peer_learning_rates for name in (PEER, MATCHED)]
    jobs = [
        (name, concept, seed, rate)
        for name, rate in [*matched, (OURS, args.learning_rate)]
        for concept in args.concepts
        for seed in args.seeds
    ]
    runs = [run(*job, args, python) for job in tqdm(jobs, desc="runs")]
    (args.output_dir / "peers.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    (args.output_dir / "peers.md").write_text(table(runs) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main(parse_args())
