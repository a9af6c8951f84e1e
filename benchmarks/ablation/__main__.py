"""Ablate the objective on the bundled canvas: `python -m benchmarks.ablation`.

Every variant of `benchmarks/ablation/variants.py` first gets a small sweep of learning rates on one style and
one object, then runs on all concepts and seeds at its own best one, all on the same budget of images. The
judge looks at the adapter on the way and decides nothing. A run is one JSON file, and what is there is not
run again: the benchmark can be interrupted. Written are table.md, summary.json and ablation.png.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.tables import best_learning_rate, plot, reached, table
from benchmarks.ablation.variants import VARIANTS
from benchmarks.canvas import CONCEPTS
from benchmarks.jobs import Job, run_jobs, slug
from benchmarks.report import write_json, write_text
from common.errors import friendly_errors
from common.flags import IMAGE_SEED, SEED, flag, parse

SWEEP_SEED = 100

Trial = tuple[str, str, int, float]
"""Variant, concept, seed and learning rate."""


@dataclass(frozen=True)
class AblationConfig:
    """Runs."""

    variants: tuple[str, ...] = flag(
        tuple(VARIANTS), choices=tuple(VARIANTS), help="Which variants to compare. Default: all."
    )
    concepts: tuple[str, ...] = flag(CONCEPTS, help="What to erase, each in runs of its own.")
    sweep_concepts: tuple[str, ...] = flag(
        ("Watercolour style", "star"), help="What the learning rates are chosen on."
    )
    learning_rates: tuple[float, ...] = flag(
        (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), above=0, help="Which ones are tried."
    )
    seeds: tuple[int, ...] = flag((0, 1, 2), within=SEED, help="Training seeds.")
    sweep_budget: int = flag(704, at_least=1, help="Images that a run of the sweep may draw.")
    budget: int = flag(1000, at_least=1, help="Images that a run may draw, warm-up included.")
    every: int = flag(2, at_least=1, help="Iterations between two judgements.")
    judge_seeds: tuple[int, ...] = flag(
        (0,), within=IMAGE_SEED, help="One image for each prompt and seed in every judgement."
    )
    jobs: int = flag(
        os.cpu_count() or 1,
        at_least=1,
        help="Runs at a time, one thread each. Default: the number of cores.",
    )
    output_dir: Path = flag(Path("runs/ablation"), help="Where runs, table, JSON and picture are written.")


def job(trial: Trial, stage: str, config: AblationConfig) -> Job:
    """One run of a stage, "sweep" or "runs"."""
    variant, concept, seed, rate = trial
    name = slug(f"{variant}-{concept}-{seed}-{rate:g}", keep=".-")
    output = config.output_dir / stage / f"{name}.json"
    given = {
        "variant": variant,
        "concept": concept,
        "seed": seed,
        "learning_rate": rate,
        "output": output,
        "budget": config.sweep_budget if stage == "sweep" else config.budget,
        "every": config.every,
    }
    words = [word for flag_name, value in given.items() for word in (f"--{flag_name}", str(value))]
    words += ["--judge_seeds", *map(str, config.judge_seeds)]
    return Job(["-m", "benchmarks.ablation.run", *words], output, output.with_suffix(".log"))


def run_all(trials: Sequence[Trial], stage: str, config: AblationConfig) -> list[dict[str, Any]]:
    """The results of a stage's runs, from their files where these exist.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    return run_jobs([job(trial, stage, config) for trial in trials], config.jobs, stage)


def parse_config(arguments: Sequence[str] | None = None) -> AblationConfig:
    """The settings of a command line."""
    return parse(AblationConfig, arguments, __doc__, prog="python -m benchmarks.ablation")


def main(config: AblationConfig) -> None:
    variants = config.variants
    swept = [
        (v, c, SWEEP_SEED, rate)
        for v in variants
        for c in config.sweep_concepts
        for rate in config.learning_rates
    ]
    sweep = run_all(swept, "sweep", config)
    rates = {v: best_learning_rate([run for run in sweep if run["variant"] == v]) for v in variants}
    chosen = [(v, c, seed, rates[v]) for seed in config.seeds for v in variants for c in config.concepts]
    runs = run_all(chosen, "runs", config)
    runs.sort(key=lambda run: variants.index(run["variant"]))
    kept = ("variant", "concept", "seed", "learning_rate", "base", "curve", "training")
    summary = {
        "learning_rates": rates,
        "runs": [{name: run[name] for name in kept} | {"images_to_target": reached(run)} for run in runs],
    }
    write_json(config.output_dir / "summary.json", summary)
    write_text(config.output_dir / "table.md", table(runs))
    plot(runs, config.output_dir / "ablation.png")
    print(table(runs))


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
