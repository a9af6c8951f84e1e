"""Ablate the objective on the bundled canvas: `python -m benchmarks.ablation`.

Every variant of `benchmarks/ablation/variants.py` first gets a small sweep of learning rates on one style and
one object, then runs on all concepts and seeds at its own best one, all on the same budget of images. The
judge looks at the adapter on the way and decides nothing. A run is one JSON file, and what is there is not
run again: the benchmark can be interrupted. Written are table.md,
    summary.json and ablation.png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from benchmarks.ablation.report import best_learning_rate, plot, reached, table
from benchmarks.ablation.variants import VARIANTS
from benchmarks.canvas import CONCEPTS
from benchmarks.jobs import Job, run_jobs

SWEEP_SEED = 100


def run_all(
    runs: list[tuple[str, str, int, float]], args: argparse.Namespace, stage: str
) -> list[dict[str, Any]]:
    """The results of runs given by variant, concept, seed and learning rate, from their files where they
    exist.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    budget = args.sweep_budget if stage == "sweep" else args.budget
    jobs = []
    for variant, concept, seed, rate in runs:
        output = (
            args.output_dir
            / stage
            / f"{re.sub(r'[^a-z0-9.-]+', '-', f'{variant}-{concept}-{seed}-{rate:g}'.casefold())}.json"
        )
        given = [
            "--variant",
            variant,
            "--concept",
            concept,
            "--seed",
            str(seed),
            "--learning_rate",
            str(rate),
            "--output",
            str(output),
        ]
        given += [
            "--budget",
            str(budget),
            "--every",
            str(args.every),
            "--judge_seeds",
            *map(str, args.judge_seeds),
        ]
        jobs.append(Job(["-m", "benchmarks.ablation.run", *given], output, output.with_suffix(".log")))
    return run_jobs(jobs, args.jobs, stage)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="Which variants to compare.",
    )
    parser.add_argument(
        "--concepts", nargs="+", default=CONCEPTS, help="What to erase, each in runs of its own."
    )
    parser.add_argument(
        "--sweep_concepts",
        nargs="+",
        default=["Watercolour style", "star"],
        help="What the learning rates are chosen on.",
    )
    parser.add_argument(
        "--learning_rates",
        nargs="+",
        type=float,
        default=[2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2],
        help="Which ones are tried.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Training seeds.")
    parser.add_argument(
        "--sweep_budget", type=int, default=704, help="Images that a run of the sweep may draw."
    )
    parser.add_argument(
        "--budget", type=int, default=1000, help="Images that a run may draw, warm-up included."
    )
    parser.add_argument("--every", type=int, default=2, help="Iterations between two judgements.")
    parser.add_argument(
        "--judge_seeds",
        nargs="+",
        type=int,
        default=[0],
        help="One image a prompt and seed in every judgement.",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/ablation"),
        help="Where runs, table, JSON and picture are written.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    sweep = run_all(
        [
            (v, c, SWEEP_SEED, rate)
            for v in args.variants
            for c in args.sweep_concepts
            for rate in args.learning_rates
        ],
        args,
        "sweep",
    )
    rates = {v: best_learning_rate([run for run in sweep if run["variant"] == v]) for v in args.variants}
    runs = run_all(
        [(v, c, seed, rates[v]) for seed in args.seeds for v in args.variants for c in args.concepts],
        args,
        "runs",
    )
    runs.sort(key=lambda run: args.variants.index(run["variant"]))
    kept = ("variant", "concept", "seed", "learning_rate", "base", "curve", "training")
    summary = {
        "learning_rates": rates,
        "runs": [{name: run[name] for name in kept} | {"images_to_target": reached(run)} for run in runs],
    }
    (args.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (args.output_dir / "table.md").write_text(table(runs) + "\n", encoding="utf-8")
    plot(runs, args.output_dir / "ablation.png")
    print(table(runs))


if __name__ == "__main__":
    main(parse_args())
