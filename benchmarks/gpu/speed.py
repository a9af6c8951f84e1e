"""Where the time of Stable Diffusion 1.5 goes, by `benchmarks.profile`: batch sizes, then flags."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.work import Measurement, Work
from benchmarks.memory.trial import forget_peak, peak
from benchmarks.profile import BACKWARD, FORWARD, LEARNING, ProfileConfig, profile, run_flags
from training.config import parse_config

BASE = "sd15"


def batches(work: Work) -> Iterator[Measurement]:
    """One iteration as a run has it; then shorter ones, after one to warm up, by batch size and flag."""
    scale = work.scale
    yield measurement(work, scale.batch, scale.whole_steps)
    for batch in scale.batches:
        yield measurement(work, batch, scale.steps)
    for flag in ("--gradient_checkpointing", "--channels_last"):
        yield measurement(work, scale.batch, scale.steps, flag)


def compiled(work: Work, stage: str) -> Iterator[Measurement]:
    """The same with --torch_compile, whose backend and mode hold for a whole process."""
    backend, mode = work.scale.compilers[stage]
    asked = {"ACCELERATE_DYNAMO_BACKEND": backend, "ACCELERATE_DYNAMO_MODE": mode}
    plain = measurement(work, work.scale.batch, work.scale.steps, "--torch_compile")

    def measure_compiled() -> dict[str, Any]:
        os.environ |= asked
        return plain.measure()

    yield Measurement(plain.settings | {"backend": backend, "mode": mode}, measure_compiled)


def measurement(work: Work, batch: int, steps: int, *flags: str) -> Measurement:
    """One iteration at a batch size and a number of denoising steps."""
    settings: dict[str, Any] = {"batch": batch, "steps": steps, "images": work.scale.images}
    settings |= {"flags": ["--mixed_precision", work.scale.precision, *flags]}
    return Measurement(settings, partial(measure, work, settings))


def short_flags(steps: int) -> list[str]:
    """Of a run of few denoising steps, of which it learns from half, however far it goes."""
    return ["--num_inference_steps", str(steps), "--masked_steps", "0", "--target_kl", "1e9"]


def measure(work: Work, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of an iteration, in all and by part; overhead as a fraction of them; operations a second of the
    measured matrix peak, and fractions of it that are reached in rollout and update; GB of the GPU."""
    work.base(BASE)
    flags = ["--train_batch_size", str(settings["batch"]), *settings["flags"]]
    config = ProfileConfig(iterations=1, model=BASE, images=settings["images"], bases=work.bases)
    forget_peak()
    with work.directory() as directory:
        line = [*run_flags(config, directory), *flags, *short_flags(settings["steps"])]
        found = profile(parse_config(line), warm_up=settings["steps"] != work.scale.whole_steps)
    return {
        "seconds": found.total / found.iterations,
        "overhead": found.overhead,
        "matrix_peak": found.peak,
        "rollout_share": found.utilisation(FORWARD),
        "update_share": found.utilisation(LEARNING, BACKWARD),
        "parts": {name: seconds / found.iterations for name, seconds in found.parts.items()},
        **peak(),
    }
