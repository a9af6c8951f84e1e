"""Runs in processes of their own. Each writes one JSON file, and what is there is not run again, so that a
benchmark can be interrupted."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from hub.results import read_file

Item, Found = TypeVar("Item"), TypeVar("Found")
SCRIPT = Path(__file__).parents[1] / "train_unlearn_lora.py"


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        arguments: of Python.
        output: the JSON file that it leaves, last of all it writes.
        log: where its output goes.
        python: the interpreter.
    """

    arguments: Sequence[str]
    output: Path
    log: Path
    python: str = sys.executable


def slug(text: str, keep: str = "") -> str:
    """The text as part of a file's name: letters, digits and what is to `keep`, with dashes between."""
    return re.sub(rf"[^a-z0-9{re.escape(keep)}]+", "-", text.casefold())


def run_job(job: Job) -> dict[str, Any]:
    """What the job's file says, after running it if there is none.

    Raises:
        RuntimeError: the run failed; the message names its log.
    """
    if not job.output.is_file():
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as file:
            code = subprocess.run(
                [job.python, *job.arguments], stdout=file, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise RuntimeError(f"python {' '.join(job.arguments)} ended with exit code {code}; see {job.log}")
    return read_file(job.output)


def run_jobs(jobs: Sequence[Job], at_a_time: int, title: str = "runs") -> list[dict[str, Any]]:
    """The results of all jobs, in their order.

    Args:
        at_a_time: number of jobs that run together, on equal shares of the cores.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    return in_parallel(run_job, jobs, at_a_time, title)


def in_parallel(
    act: Callable[[Item], Found], items: Sequence[Item], at_a_time: int, title: str
) -> list[Found]:
    """What comes of every item, in their order; each acts by processes of its own.

    Args:
        at_a_time: number of items that are acted on together, on equal shares of the cores.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_a_time)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(tqdm(pool.map(act, items), total=len(items), desc=title))


def run_script(arguments: Sequence[str]) -> None:
    """Run the training script as the program that it is, for a benchmark that has a process of its own.

    Raises:
        SystemExit: it ended before its time.
    """
    before, sys.argv = sys.argv, [str(SCRIPT), *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before


def split_arguments(arguments: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """A command line as what stands before its `--` and what is passed on to another program, after it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--" not in given:
        return given, []
    at = given.index("--")
    return given[:at], given[at + 1 :]
