"""What only a GPU can show, for where one is lent by the minute: `python -m benchmarks.gpu`.

On a machine with a GPU, Python 3.12 and PyTorch, to which the working tree was copied and which has no
network; `python -m benchmarks.gpu.wheels` has gathered, before, what else it lacks:

    pip install --no-index --no-deps --find-links benchmarks/gpu/wheelhouse benchmarks/gpu/wheelhouse/*.whl \\
        && python -m benchmarks.gpu --output_dir DIR --seconds 360

Stages run in the order of what matters most, each in a process of its own that is ended at its bound. Every
result is a line of `results.jsonl` the moment it is there. The same command goes on where the last one
ended: what has been measured is not measured again, and what failed is tried again.
`python -m benchmarks.gpu.tables` makes tables of it, anywhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from benchmarks.gpu.results import NAME, Results
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.work import Work, WorkConfig
from benchmarks.jobs import SCRIPT
from common.errors import friendly_errors
from common.files import make_directory
from common.flags import flag, parse

LOG = "log.txt"


@dataclass(frozen=True, kw_only=True)
class GpuConfig(WorkConfig):
    """Measurement."""

    stages: tuple[str, ...] = flag(tuple(STAGES), choices=tuple(STAGES), help="Which. Default: all.")
    seconds: float = flag(360.0, above=0, help="After which the call ends, whatever is left to measure.")


def run_bounded(command: Sequence[str], seconds: float, log: IO[bytes]) -> str:
    """Run a program in the checkout until it ends or its time is up.

    Returns:
        why it did not end as it should; empty if it did.
    """
    process = subprocess.Popen(
        command, cwd=SCRIPT.parent, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"was ended after {seconds:.0f} seconds"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"was ended by signal {-code}" if code < 0 else ""


def stage_command(name: str, config: GpuConfig, scratch: Path) -> list[str]:
    """The process of a stage."""
    given = {"stage": name, "output_dir": config.output_dir.resolve(), "scratch": scratch.resolve()}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    words += [f"--label={config.label}", *(["--tiny"] if config.tiny else [])]
    return [sys.executable, "-m", "benchmarks.gpu.stage", *words]


def parse_config(arguments: Sequence[str] | None = None) -> GpuConfig:
    """The settings of a command line."""
    return parse(GpuConfig, arguments, __doc__, prog="python -m benchmarks.gpu")


def main(config: GpuConfig) -> None:
    end = time.monotonic() + config.seconds
    make_directory(config.output_dir)
    results = Results(config.output_dir / NAME, config.label)
    with ExitStack() as held:
        scratch = config.scratch or Path(held.enter_context(TemporaryDirectory()))
        log = held.enter_context((config.output_dir / LOG).open("ab"))
        work = Work.of(config, scratch)
        for name in config.stages:
            pending, left = len(STAGES[name].pending(name, work, results)), end - time.monotonic()
            if not pending:
                print(f"{name}: measured before", flush=True)
                continue
            if left <= 0:
                print(f"{name}: {pending} left for another call", flush=True)
                continue
            bound = min(work.scale.patience * STAGES[name].bound, left)
            why = run_bounded(stage_command(name, config, scratch), bound, log)
            if why:
                results.add_failure(name, {}, why)
            undone = len(STAGES[name].pending(name, work, results))
            print(f"{name}: {pending - undone} of {pending} measured {why}".rstrip(), flush=True)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
