"""Runs in processes of their own. Each writes one JSON file, and what is there is not run again, so that a
benchmark can be interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        arguments: of Python.
        output: the JSON file that it leaves, last of all it writes.
        log: where its output goes.
    """

    arguments: Sequence[str]
    output: Path
    log: Path


def run_job(job: Job) -> dict[str, Any]:
    """What the job's file says, after running it if there is none.

    Raises:
        RuntimeError: the run failed; the message names its log.
    """
    if not job.output.is_file():
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as file:
            code = subprocess.run(
                [sys.executable, *job.arguments], stdout=file, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise RuntimeError(f"python {' '.join(job.arguments)} ended with exit code {code}; see {job.log}")
    return json.loads(job.output.read_text(encoding="utf-8"))


def run_jobs(jobs: Sequence[Job], at_a_time: int, title: str = "runs") -> list[dict[str, Any]]:
    """The results of all jobs, in their order, so many of them run at a time on an equal share of the cores.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_a_time)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(tqdm(pool.map(run_job, jobs), total=len(jobs), desc=title))
