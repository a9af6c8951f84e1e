"""One trial of the sweep: train with some settings, judge the adapter on the way, write one JSON file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.run import judged
from benchmarks.baselines import METHODS
from benchmarks.baselines.command import TaskConfig, choose_examination, prepare
from benchmarks.report import write_json
from common.errors import friendly_errors
from common.flags import flag, parse
from evaluation.examination import Examination, spaced
from evaluation.metrics import HEADLINE

SEED = 100
"""Of the judged images: none that the comparison draws."""
EVERY = 50


@dataclass(frozen=True)
class OutputConfig:
    """Output."""

    output: Path = flag(help="The JSON file.")
    kept_prompts: int | None = flag(
        None,
        at_least=1,
        help="How many of the prompts that do not name the concept are judged, evenly spaced. Default: all.",
    )
    images: int = flag(1, at_least=1, help="Judged images of each prompt.")


@dataclass(frozen=True)
class TrialConfig:
    """A trial."""

    task: TaskConfig
    output: OutputConfig


def shorten(examination: Examination, kept: int) -> None:
    """Leave it all prompts that name the concept, and `kept` of the others."""
    forget = [cell for cell in examination.cells if cell.forget]
    examination.cells = forget + spaced([cell for cell in examination.cells if not cell.forget], kept)


def train_and_judge(config: TaskConfig, kept_prompts: int | None = None, images: int = 1) -> dict[str, Any]:
    """UA, IRA and CRA after every `EVERY` steps, and after the last.

    Args:
        kept_prompts: how many that do not name the concept are judged; None is all.
        images: judged ones of each prompt.
    """
    prepared, method = prepare(config), config.method
    examination, task = choose_examination(config, prepared), prepared.task
    if kept_prompts is not None:
        shorten(examination, kept_prompts)
    seeds = range(SEED, SEED + images)
    curve: list[dict[str, Any]] = []
    last, started, judging = getattr(prepared.settings, "steps", 1), time.perf_counter(), 0.0

    def watch(step: int) -> None:
        nonlocal judging
        if step % EVERY == 0 or step == last:
            begun = time.perf_counter()
            found = judged(task.pipe, examination, seeds)
            spent = {"steps": step, "seconds": round(begun - started - judging, 1)}
            curve.append(spent | {name: found[name] for name in HEADLINE})
            judging += time.perf_counter() - begun

    METHODS[method.method].erase(task, prepared.settings, method.seed, watch)
    concept, settings = config.concept.concept, list(method.settings)
    return {"method": method.method, "concept": concept, "settings": settings, "curve": curve}


def main() -> None:
    config = parse(TrialConfig, None, __doc__, prog="python -m benchmarks.baselines.trial")
    output = config.output
    write_json(output.output, train_and_judge(config.task, output.kept_prompts, output.images))


if __name__ == "__main__":
    with friendly_errors():
        main()
