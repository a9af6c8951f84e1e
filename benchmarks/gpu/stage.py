"""The process of one stage: `python -m benchmarks.gpu.stage --stage speed --scratch DIR`. Every measurement
that is not in results.jsonl is made, and appended at once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.results import NAME, Results
from benchmarks.gpu.stages import STAGES, Stage
from benchmarks.gpu.work import Measurement, Work, WorkConfig, card
from common.errors import friendly_errors
from common.flags import flag, parse


@dataclass(frozen=True, kw_only=True)
class StageConfig(WorkConfig):
    """One stage."""

    stage: str = flag(choices=tuple(STAGES), help="Which.")


def measure_all(name: str, stage: Stage, work: Work, results: Results) -> int:
    """Make what is pending of a stage; what fails is appended with its reason and does not stop the rest.

    Returns:
        the number of measurements that failed.
    """
    failed = 0
    for one in stage.pending(name, work, results):
        print(f"{name}: {one.settings}", flush=True)
        failed += not measured(name, one, results)
    return failed


def measured(name: str, one: Measurement, results: Results) -> bool:
    """Make one measurement and append it, or why it failed; whether it was made."""
    started = time.perf_counter()
    try:
        figures = one.measure()
    except ModuleNotFoundError as error:
        results.add_failure(name, one.settings, f"{error.name} is not installed")
        return False
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        results.add_failure(name, one.settings, f"{type(error).__name__}: {error}")
        return False
    results.add(name, one.settings, figures, card=card(), wall_seconds=time.perf_counter() - started)
    return True


def parse_config(arguments: Sequence[str] | None = None) -> StageConfig:
    """The settings of a command line."""
    return parse(StageConfig, arguments, __doc__, prog="python -m benchmarks.gpu.stage")


def main(config: StageConfig) -> int:
    if config.scratch is None:
        raise ValueError("a stage needs --scratch")
    results = Results(config.output_dir / NAME, config.label)
    return measure_all(config.stage, STAGES[config.stage], Work.of(config, config.scratch), results)


if __name__ == "__main__":
    with friendly_errors():
        raise SystemExit(min(main(parse_config()), 1))
