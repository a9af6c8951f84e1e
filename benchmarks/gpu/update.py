"""What the device does in one update: kernels by the time they take, and gaps between them."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.speed import BASE, short_flags
from benchmarks.gpu.work import Measurement, Work, device
from benchmarks.loop import learn
from benchmarks.memory.trial import forget_peak
from benchmarks.profile import ProfileConfig, run_flags, watched_run
from training.baseline import measure_base
from training.config import parse_config
from training.run_state import begin
from training.setup import prepare

T = TypeVar("T")
NAME = "update.json.gz"
TOP = 25
"""Kernels that are listed."""


class Recorder:
    """Records what the device does in the first call after `armed` is set, as a watch on a method.

    Attributes:
        found: the recording, once there is one.
    """

    def __init__(self) -> None:
        self.armed = False
        self.found: profile | None = None

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The same function."""

        def recorded(*given: Any, **named: Any) -> T:
            if not self.armed:
                return function(*given, **named)
            self.armed = False
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            with profile(activities=kinds) as self.found:
                made = function(*given, **named)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            return made

        return recorded


def kernels(work: Work) -> Iterator[Measurement]:
    """One update of Stable Diffusion 1.5, of one batch and one denoising step, after another like it."""
    settings = {"batch": work.scale.batch, "steps": work.scale.steps, "precision": work.scale.precision}
    yield Measurement(settings, partial(measure, work, settings))


def measure(work: Work, settings: dict[str, Any]) -> dict[str, Any]:
    """The kernels that take most of an update, and for how much of it the device is idle; the whole recording
    is written beside the results, for a browser's trace viewer."""
    work.base(BASE)
    forget_peak()
    batch, recorder = settings["batch"], Recorder()
    config = ProfileConfig(iterations=1, model=BASE, images=batch, bases=work.bases)
    with work.directory() as directory:
        flags = ["--mixed_precision", settings["precision"], "--train_batch_size", str(batch)]
        line = [*run_flags(config, directory), *flags, *short_flags(settings["steps"])]
        run = prepare(parse_config(line))
        run = watched_run(run, recorder, {}, {"update": "update"})
        base, fresh = measure_base(run), run.policy.state()
        learn(run, base, begin(run, base, 0.0))
        run.policy.load_state(fresh)
        recorder.armed = True
        learn(run, base, begin(run, base, 0.0))
    assert recorder.found is not None
    write_trace(recorder.found, work.output_dir / NAME)
    return {**busy(recorder.found), "kernels": top(recorder.found)}


def write_trace(found: profile, path: Path) -> None:
    """Write a recording, compressed."""
    with TemporaryDirectory() as name:
        plain = Path(name) / "trace.json"
        found.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)


def busy(found: profile) -> dict[str, Any]:
    """Seconds from the first to the last thing that the device did, the fraction of them in which it did
    something, the number of gaps of more than 10 microseconds, and the longest, in seconds."""
    assert found.profiler is not None
    wanted = DeviceType.CUDA if device() == "cuda" else DeviceType.CPU
    events = found.profiler.kineto_results.events()
    spans = merged(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == wanted and not event.is_user_annotation()
    )
    total = spans[-1][1] - spans[0][0]
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    return {
        "seconds": total / 1e9,
        "busy": sum(end - start for start, end in spans) / total,
        "gaps": sum(gap > 10_000 for gap in gaps),
        "longest_gap": max(gaps, default=0) / 1e9,
    }


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans (start, end) in their order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def top(found: profile) -> list[dict[str, Any]]:
    """The kernels that take the most time together: name, calls, seconds and their share of all kernels'. On
    a CPU, its operators."""
    on_gpu = device() == "cuda"
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [
        (getattr(row, attribute), row)
        for row in found.key_averages()
        if row.device_type == wanted and not row.is_user_annotation
    ]
    together = sum(taken for taken, _ in rows)
    rows.sort(key=lambda row: -row[0])
    return [
        {"name": row.key[:160], "calls": row.count, "seconds": taken / 1e6, "share": taken / together}
        for taken, row in rows[:TOP]
    ]
