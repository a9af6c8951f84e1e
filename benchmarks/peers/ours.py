"""One run of our trainer beside the peer's; one JSON file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.run import TrialConfig, judge_run, prepare_judge, run_flags
from benchmarks.loop import learn
from benchmarks.peers.settings import MATCHED
from benchmarks.profile import Stopwatch, watched_run
from benchmarks.report import write_json
from common.errors import friendly_errors
from common.flags import flag, parse
from training.baseline import measure_base
from training.config import parse_config
from training.progress import Progress
from training.run_state import begin
from training.setup import prepare


@dataclass(frozen=True)
class OursConfig(TrialConfig):
    """A run of our trainer."""

    matched: bool = flag(False, help="With the algorithm of the peer in place of the defaults.")


def train(flags: Sequence[str]) -> tuple[Progress, Stopwatch]:
    """Train with a watch on "rollout" and "update".

    Args:
        flags: of the training script.
    """
    watch = Stopwatch()
    run = prepare(parse_config(flags))
    run = watched_run(run, watch, {"collect": "rollout"}, {"update": "update"})
    started = time.perf_counter()
    base = measure_base(run)
    state = begin(run, base, time.perf_counter() - started)
    learn(run, base, state)
    return state.progress, watch


def train_and_judge(trial: TrialConfig, varied: Sequence[str]) -> dict[str, Any]:
    """Train, and judge the checkpoints; judging is on nobody's clock.

    Args:
        varied: further flags of the training script.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = run_flags(trial, varied, directory)
        progress, watch = train([*flags, "--evaluation_seeds"])
        found = judge_run(prepare_judge(flags, Path(name) / "judge"), directory, trial.judge_seeds)
    return {
        **found,
        "images": progress.images,
        "seconds": round(progress.seconds, 1),
        "parts": dict(watch.seconds),
    }


def main() -> None:
    config = parse(OursConfig, None, __doc__, prog="python -m benchmarks.peers.ours")
    write_json(config.output, train_and_judge(config, MATCHED if config.matched else []))


if __name__ == "__main__":
    with friendly_errors():
        main()
