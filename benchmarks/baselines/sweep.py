"""Choose the settings of the baselines: `python -m benchmarks.baselines.sweep`.

Every method of `GRID` runs with each of its settings on a style and on an object that the comparison does not
erase, of the canvas or of the artwork (`--artwork`), and the judge looks at the adapter on the way. The best
have the highest mean of UA, IRA and CRA over both, and of equals those that needed the fewest steps. A run is
one JSON file, and what is there is not run again; of the artwork it is kept as a record (`--records`), which
another machine need not run again either. Written are sweep.md and sweep.json.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.artwork.world import FIXED, RECORDS, Base
from benchmarks.baselines.trial import SEED
from benchmarks.jobs import Job, in_parallel, run_job, run_jobs, slug
from benchmarks.report import markdown, number, write_json, write_text
from common.errors import friendly_errors
from common.flags import flag, parse
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
    "rece": {"preserve_scale": [0.1], "iterations": [1, 3], "regularisation": [1e-3, 1e-1]},
    "hirm": {
        "direction": ["semantic", "random"],
        "prompts": ["name", "spec"],
        "learning_rate": [1e-3],
        "steps": [100],
    },
}
"""What is tried: every combination, each after every 50 steps."""

FURTHER: dict[str, dict[str, Sequence[object]]] = {
    "esd": {"learning_rate": [3e-3, 1e-2], "prompts": ["spec"], "steps": [150]},
    "spm": {"learning_rate": [3e-3], "anchoring": [10.0], "prompts": ["spec"], "steps": [200]},
    "hirm": {
        "direction": ["semantic"],
        "prompts": ["spec"],
        "learning_rate": [1e-3, 2e-3],
        "steps": [200],
    },
    "rece": {"preserve_scale": [1.0], "iterations": [1, 3], "regularisation": [1e-3, 1e-1]},
}
"""What is tried on the artwork, too, where more of a setting promised more than the above had found."""

CANVAS, ARTWORK = ("Watercolour style", "star"), ("Twemoji style", "melon")
"""What settings are chosen on, of either world: none that a comparison erases."""
FEWER = ("--kept_prompts", "64", "--images", "3")
"""Of the 328 prompts of the artwork: a judgement takes a minute, not ten."""


def score(run: Run, steps: int) -> float:
    """Mean of UA, IRA and CRA after a number of steps."""
    return fmean(next(point for point in run["curve"] if point["steps"] == steps)[name] for name in HEADLINE)


def ranked(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings of one method, the best first; each with its mean score and metrics over the concepts."""
    rows = []
    for settings in dict.fromkeys(tuple(run["settings"]) for run in runs):
        of = [run for run in runs if tuple(run["settings"]) == settings]
        for steps in (point["steps"] for point in of[0]["curve"]):
            points = [next(point for point in run["curve"] if point["steps"] == steps) for run in of]
            means = {name: fmean(point[name] for point in points) for name in (*HEADLINE, "seconds")}
            best = fmean(score(run, steps) for run in of)
            rows.append({"settings": list(settings), "steps": steps, "score": best, **means})
    return sorted(rows, key=lambda row: (-row["score"], row["steps"]))


def table(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: all that was tried, the best of each method first."""
    rows = []
    for method, tried in by_method.items():
        for row in tried:
            settings = ", ".join(text for text in row["settings"] if not text.startswith("steps="))
            metrics = [number(row[name]) for name in ("score", *HEADLINE, "seconds")]
            rows.append([method, settings, str(row["steps"]), *metrics])
    return markdown(["method", "settings", "steps", "mean", *HEADLINE, "seconds"], rows)


@dataclass(frozen=True)
class SweepConfig:
    """Trials."""

    methods: tuple[str, ...] = flag(tuple(GRID), choices=tuple(GRID), help="Which methods. Default: all.")
    artwork: Path | None = flag(
        None,
        metavar="DIR",
        help="What `python -m benchmarks.worlds.artwork build` has written: choose them for it. Default: for the "
        "canvas.",
    )
    concepts: tuple[str, ...] | None = flag(
        None,
        help=f"What the settings are chosen on. Default: {', '.join(CANVAS)}; for the artwork "
        f"{', '.join(ARTWORK)}.",
    )
    jobs: int = flag(
        os.cpu_count() or 1,
        at_least=1,
        help="Runs at a time, one thread each. Default: the number of cores.",
    )
    records: Path = flag(
        RECORDS / "sweep",
        metavar="DIR",
        help="Where a file a run of the artwork is kept. Default: what the project ships.",
    )
    output_dir: Path = flag(Path("runs/baselines-sweep"), help="Where runs, table and JSON are written.")

    @property
    def chosen_on(self) -> tuple[str, ...]:
        """The concepts."""
        return self.concepts or (ARTWORK if self.artwork else CANVAS)

    def world_flags(self) -> dict[str, list[str]]:
        """Those of a trial, by concept, that say which world it is.

        Raises:
            ValueError: the artwork lacks a part.
        """
        if not self.artwork:
            return {concept: [] for concept in self.chosen_on}
        base = Base(self.artwork)
        base.check()
        world = base.world(self.chosen_on, self.output_dir / "told")
        judged = ["--judge_name_or_path", str(self.artwork / "judge"), *FEWER]
        return {concept: [*world.erase(concept), *judged] for concept in self.chosen_on}


def job(method: str, concept: str, settings: Sequence[str], world: Sequence[str], output_dir: Path) -> Job:
    """One trial."""
    name = slug(f"{method}-{concept}-{'-'.join(settings)}")
    output = output_dir / "runs" / f"{name}.json"
    given = ["--method", method, "--concept", concept, "--seed", str(SEED), *world, "--settings", *settings]
    return Job(
        ["-m", "benchmarks.baselines.trial", *given, "--output", str(output)],
        output,
        output.with_suffix(".log"),
    )


def combinations(method: str, artwork: bool) -> list[list[str]]:
    """The settings of every trial of a method, as its program takes them."""
    grids = [GRID[method], *([FURTHER[method]] if artwork and method in FURTHER else [])]
    fixed = FIXED.get(method, ()) if artwork else ()
    return [
        [*fixed, *(f"{name}={value}" for name, value in zip(grid, row, strict=True))]
        for grid in grids
        for row in product(*grid.values())
    ]


def run_trials(jobs: Sequence[Job], config: SweepConfig, title: str) -> list[dict[str, Any]]:
    """What the trials found, in their order."""
    if not config.artwork:
        return run_jobs(jobs, config.jobs, title)
    records = Base(config.artwork).records(config.records)

    def found(job: Job) -> dict[str, Any]:
        return records.of(job.output.stem, lambda: run_job(job))

    return in_parallel(found, jobs, config.jobs, title)


def parse_config(arguments: Sequence[str] | None = None) -> SweepConfig:
    """The settings of a command line."""
    return parse(SweepConfig, arguments, __doc__, prog="python -m benchmarks.baselines.sweep")


def main(config: SweepConfig) -> None:
    by_method, flags = {}, config.world_flags()
    for method in config.methods:
        jobs = [
            job(method, concept, settings, world, config.output_dir)
            for settings in combinations(method, config.artwork is not None)
            for concept, world in flags.items()
        ]
        by_method[method] = ranked(run_trials(jobs, config, method))
    write_json(config.output_dir / "sweep.json", by_method)
    write_text(config.output_dir / "sweep.md", table(by_method))
    print(table(by_method))


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
