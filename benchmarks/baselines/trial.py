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
from evaluation.metrics import HEADLINE

SEED = 100
"""Of the judged images: none that the comparison draws."""
EVERY = 50


@dataclass(frozen=True)
class OutputConfig:
    """Output."""

    output: Path = flag(help="The JSON file.")


@dataclass(frozen=True)
class TrialConfig:
    """A trial."""

    task: TaskConfig
    output: OutputConfig


def train_and_judge(config: TaskConfig) -> dict[str, Any]:
    """UA, IRA and CRA after every `EVERY` steps, and after the last."""
    prepared, method = prepare(config), config.method
    examination, task = choose_examination(config, prepared), prepared.task
    curve: list[dict[str, Any]] = []
    last, started, judging = getattr(prepared.settings, "steps", 1), time.perf_counter(), 0.0

    def watch(step: int) -> None:
        nonlocal judging
        if step % EVERY == 0 or step == last:
            begun = time.perf_counter()
            found = judged(task.pipe, examination, [SEED])
            spent = {"steps": step, "seconds": round(begun - started - judging, 1)}
            curve.append(spent | {name: found[name] for name in HEADLINE})
            judging += time.perf_counter() - begun

    METHODS[method.method].erase(task, prepared.settings, method.seed, watch)
    concept, settings = config.concept.concept, list(method.settings)
    return {"method": method.method, "concept": concept, "settings": settings, "curve": curve}


def main() -> None:
    config = parse(TrialConfig, None, __doc__, prog="python -m benchmarks.baselines.trial")
    write_json(config.output.output, train_and_judge(config.task))


if __name__ == "__main__":
    with friendly_errors():
        main()
