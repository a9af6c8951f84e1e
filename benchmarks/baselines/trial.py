"""One trial of the sweep: train with some settings, judge the adapter on the way, write one JSON file."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.ablation.run import judged
from benchmarks.baselines import METHODS
from benchmarks.baselines.command import add_task_arguments, choose_examination, prepare
from common.errors import friendly_errors
from common.files import write_aside
from evaluation.metrics import HEADLINE

SEED = 100
"""Of the judged images: none that the comparison draws."""
EVERY = 50


def train_and_judge(args: argparse.Namespace) -> dict[str, Any]:
    """UA, IRA and CRA after every `EVERY` steps, and after the last."""
    task, settings, text_teacher = prepare(args)
    examination = choose_examination(args, task, text_teacher)
    curve: list[dict[str, Any]] = []
    last, started, judging = getattr(settings, "steps", 1), time.perf_counter(), 0.0

    def watch(step: int) -> None:
        nonlocal judging
        if step % EVERY == 0 or step == last:
            begun = time.perf_counter()
            found = judged(task.pipe, examination, [SEED])
            curve.append(
                {"steps": step, "seconds": round(begun - started - judging, 1)}
                | {name: found[name] for name in HEADLINE}
            )
            judging += time.perf_counter() - begun

    METHODS[args.method].erase(task, settings, args.seed, watch)
    return {"method": args.method, "concept": args.concept, "settings": args.settings, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines.trial", description=__doc__)
    add_task_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="The JSON file.")
    args = parser.parse_args()
    text = json.dumps(train_and_judge(args)) + "\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(args.output, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    with friendly_errors():
        main()
