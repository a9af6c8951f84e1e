"""Choose the settings of the baselines: `python -m benchmarks.baselines.sweep`.

Every method of `GRID` runs with each of its settings on a style and on an object that the comparison does not
erase, and the bundled judge looks at the adapter on the way. The best have the highest mean of UA, IRA and
CRA over both, and of equals those that needed the fewest steps. A run is one JSON file, and what is there is
not run again. Written are sweep.md and sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.baselines.trial import SEED
from benchmarks.canvas import slug
from benchmarks.jobs import Job, run_jobs
from common.errors import friendly_errors
from common.files import write_aside
from evaluation.metrics import HEADLINE

Run = Mapping[str, Any]

GRID: dict[str, dict[str, Sequence[object]]] = {
    "uce": {"erase_scale": [0.1, 1.0], "preserve_scale": [0.1, 1.0], "states": ["tail", "text"]},
    "ca": {"learning_rate": [1e-3], "regularisation": [0.0, 1.0], "steps": [200]},
    "esd": {"learning_rate": [1e-3], "prompts": ["name", "spec"], "steps": [150]},
    "leco": {"learning_rate": [1e-3, 2e-3, 3e-3], "prompts": ["name", "spec"], "steps": [100]},
    "spm": {
        "learning_rate": [3e-3],
        "anchoring": [10.0, 1000.0],
        "prompts": ["name", "spec"],
        "steps": [100],
    },
}
"""What is tried: every combination, each after every 50 steps."""


def score(run: Run, steps: int) -> float:
    """Mean of UA, IRA and CRA after so many steps."""
    return fmean(next(point for point in run["curve"] if point["steps"] == steps)[name] for name in HEADLINE)


def ranked(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings of one method, the best first; each with its mean score and figures over the concepts."""
    rows = []
    for settings in dict.fromkeys(tuple(run["settings"]) for run in runs):
        of = [run for run in runs if tuple(run["settings"]) == settings]
        for steps in (point["steps"] for point in of[0]["curve"]):
            points = [next(point for point in run["curve"] if point["steps"] == steps) for run in of]
            figures = {name: fmean(point[name] for point in points) for name in (*HEADLINE, "seconds")}
            rows.append(
                {
                    "settings": list(settings),
                    "steps": steps,
                    "score": fmean(score(run, steps) for run in of),
                    **figures,
                }
            )
    return sorted(rows, key=lambda row: (-row["score"], row["steps"]))


def table(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: all that was tried, the best of each method first."""
    lines = [
        "| method | settings | steps | mean | UA | IRA | CRA | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, rows in by_method.items():
        for row in rows:
            figures = " | ".join(f"{row[name]:.1f}" for name in ("score", *HEADLINE, "seconds"))
            settings = ", ".join(text for text in row["settings"] if not text.startswith("steps="))
            lines.append(f"| {method} | {settings} | {row['steps']} | {figures} |")
    return "\n".join(lines)


def job(method: str, concept: str, settings: Sequence[str], args: argparse.Namespace) -> Job:
    name = slug(f"{method}-{concept}-{'-'.join(settings)}")
    output = args.output_dir / "runs" / f"{name}.json"
    given = [
        "--method",
        method,
        "--concept",
        concept,
        "--seed",
        str(SEED),
        "--settings",
        *settings,
        "--output",
        str(output),
    ]
    return Job(["-m", "benchmarks.baselines.trial", *given], output, output.with_suffix(".log"))


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", nargs="+", choices=list(GRID), default=list(GRID), help="Which methods.")
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=["Watercolour style", "star"],
        help="What the settings are chosen on.",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/baselines-sweep"),
        help="Where runs, table and JSON are written.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    by_method = {}
    for method in args.methods:
        combinations = [
            [f"{name}={value}" for name, value in zip(GRID[method], row, strict=True)]
            for row in product(*GRID[method].values())
        ]
        jobs = [
            job(method, concept, settings, args) for settings in combinations for concept in args.concepts
        ]
        by_method[method] = ranked(run_jobs(jobs, args.jobs, method))
    text = table(by_method) + "\n"
    write_aside(
        args.output_dir / "sweep.json",
        lambda path: path.write_text(json.dumps(by_method, indent=2) + "\n", encoding="utf-8"),
    )
    write_aside(args.output_dir / "sweep.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
