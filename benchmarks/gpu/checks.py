"""Whether CUDA does what a CPU does: the demo, its first iterations beside a CPU's, the tests for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file

from benchmarks.gpu.work import Measurement, Work
from benchmarks.jobs import SCRIPT, run_script
from evaluation.metrics import HEADLINE
from hub.results import read_diagnostics, read_results

TESTS = Path("tests/test_on_a_gpu.py")


def demo(work: Work) -> Iterator[Measurement]:
    """The demo, whole; then its first two iterations here and on the CPU of this machine."""
    yield Measurement({"run": "demo", "flags": list(work.scale.demo)}, partial(whole_demo, work))
    yield Measurement({"run": "as on a CPU", "flags": list(work.scale.short)}, partial(beside_a_cpu, work))


def suite(work: Work) -> Iterator[Measurement]:
    """The tests that need a GPU; without one they are skipped."""
    yield Measurement({"tests": TESTS.as_posix()}, run_tests)


def run_flags(directory: Path, flags: tuple[str, ...]) -> list[str]:
    """Of the demo into a directory."""
    demo = ["--concept", "Van Gogh style", "--output_dir", str(directory), "--report_to", "none"]
    return [*demo, "--mixed_precision", "no", *flags]


def whole_demo(work: Work) -> dict[str, Any]:
    """UA, IRA and CRA of base and adapter in percent, if they are judged, and what the training says of
    itself: among other things how far its first ratio was from 1."""
    with work.directory() as directory:
        run_script(run_flags(directory, work.scale.demo))
        results = read_results(directory)
    training = {name: value for name, value in results["training"].items() if name != "last_iteration"}
    judged = [side for side in ("base", "adapter") if side in results]
    sides = {side: {name: results[side][name] for name in HEADLINE} for side in judged}
    return {**sides, "training": training}


def beside_a_cpu(work: Work) -> dict[str, Any]:
    """Metrics of each iteration here and on a CPU, as pairs, and how far the adapters are apart: `deviation`
    is the largest of any weight, `weight` the largest weight."""
    with work.directory() as here, work.directory() as there:
        run_script([*run_flags(here, work.scale.short), "--evaluation_seeds"])
        command = [sys.executable, str(SCRIPT), *run_flags(there, work.scale.short), "--evaluation_seeds"]
        hidden = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        subprocess.run(command, env=os.environ | hidden, check=True)
        iterations = [
            {name: [ours[name], theirs[name]] for name in ours.keys() & theirs.keys()}
            for ours, theirs in zip(read_diagnostics(here), read_diagnostics(there), strict=True)
        ]
        adapter, reference = (load_file(run / LORA_WEIGHT_NAME_SAFE) for run in (here, there))
    apart = max((adapter[name] - tensor).abs().max().item() for name, tensor in reference.items())
    largest = max(tensor.abs().max().item() for tensor in reference.values())
    return {"deviation": apart, "weight": largest, "iterations": iterations}


class Outcomes:
    """A plugin of pytest that counts.

    Attributes:
        counts: of tests that passed and that were skipped.
        failed: names of those that did not pass.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """After each of the three phases of a test."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped or report.when == "call":
            self.counts[report.outcome] += 1


def run_tests() -> dict[str, Any]:
    """How many tests passed and were skipped, and the names of those that failed."""
    import pytest  # is no requirement of a run

    outcomes = Outcomes()
    code = pytest.main([str(SCRIPT.parent / TESTS), "-p", "no:cacheprovider"], plugins=[outcomes])
    if not outcomes.counts and not outcomes.failed:
        raise RuntimeError(f"pytest ran no test: exit code {int(code)}")
    return {**outcomes.counts, "failed": outcomes.failed}
