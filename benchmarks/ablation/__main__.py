"""Ablate the objective on the bundled canvas: `python -m benchmarks.ablation`.

Every variant of `benchmarks/ablation/variants.py` first gets a small sweep of learning rates on one style and one object, then runs on all
concepts and seeds at its own best one, all on the same budget of images. The judge looks at the adapter on the way and decides nothing. A run is
one JSON file, and what is there is not run again: the benchmark can be interrupted. Written are table.md, summary.json and ablation.png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.ablation.report import best_learning_rate, plot, reached, table
from benchmarks.ablation.variants import VARIANTS
from benchmarks.canvas import CONCEPTS

Job = tuple[str, str, int, float]
SWEEP_SEED = 100


def run_all(jobs: list[Job], args: argparse.Namespace, stage: str) -> list[dict[str, Any]]:
    """The results of all jobs, from their files where they exist.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """

    def run(job: Job) -> dict[str, Any]:
        variant, concept, seed, rate = job
        output = args.output_dir / stage / f"{re.sub(r'[^a-z0-9.-]+', '-', f'{variant}-{concept}-{seed}-{rate:g}'.casefold())}.json"
        if not output.is_file():
            output.parent.mkdir(parents=True, exist_ok=True)
            log = output.with_suffix(".log")
            given = ["--variant", variant, "--concept", concept, "--seed", str(seed), "--learning_rate", str(rate), "--output", str(output)]
            given += [
                "--budget",
                str(args.sweep_budget if stage == "sweep" else args.budget),
                "--every",
                str(args.every),
                "--judge_seeds",
                *map(str, args.judge_seeds),
            ]
            with log.open("w") as file:
                code = subprocess.run([sys.executable, "-m", "benchmarks.ablation.run", *given], stdout=file, stderr=subprocess.STDOUT).returncode
            if code:
                raise RuntimeError(f"The run of {variant} on {concept} ended with exit code {code}; see {log}")
        return json.loads(output.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(args.jobs) as pool:
        return list(tqdm(pool.map(run, jobs), total=len(jobs), desc=stage))


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="Which variants to compare.")
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS, help="What to erase, each in runs of its own.")
    parser.add_argument("--sweep_concepts", nargs="+", default=["Watercolour style", "star"], help="What the learning rates are chosen on.")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2], help="Which ones are tried.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Training seeds.")
    parser.add_argument("--sweep_budget", type=int, default=704, help="Images that a run of the sweep may draw.")
    parser.add_argument("--budget", type=int, default=1000, help="Images that a run may draw, warm-up included.")
    parser.add_argument("--every", type=int, default=2, help="Iterations between two judgements.")
    parser.add_argument("--judge_seeds", nargs="+", type=int, default=[0], help="One image a prompt and seed in every judgement.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/ablation"), help="Where runs, table, JSON and picture are written.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sweep = run_all([(v, c, SWEEP_SEED, rate) for v in args.variants for c in args.sweep_concepts for rate in args.learning_rates], args, "sweep")
    rates = {v: best_learning_rate([run for run in sweep if run["variant"] == v]) for v in args.variants}
    runs = run_all([(v, c, seed, rates[v]) for seed in args.seeds for v in args.variants for c in args.concepts], args, "runs")
    runs.sort(key=lambda run: args.variants.index(run["variant"]))
    kept = ("variant", "concept", "seed", "learning_rate", "base", "curve", "training")
    summary = {"learning_rates": rates, "runs": [{name: run[name] for name in kept} | {"images_to_target": reached(run)} for run in runs]}
    (args.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (args.output_dir / "table.md").write_text(table(runs) + "\n", encoding="utf-8")
    plot(runs, args.output_dir / "ablation.png")
    print(table(runs))


if __name__ == "__main__":
    main(parse_args())
