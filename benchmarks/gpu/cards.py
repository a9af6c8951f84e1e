"""The trials of `benchmarks.memory` under the caps of smaller cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.speed import short_flags
from benchmarks.gpu.work import Measurement, Work
from benchmarks.memory.models import short_run
from benchmarks.memory.trial import measure
from benchmarks.memory.trials import TRIALS, Trial

BASES = ("sd15", "sdxl")


def groups() -> dict[str, list[Trial]]:
    """Trials by base and quantisation, as `sdxl-4bit`, the smallest card first: PyTorch gives little back
    that a smaller cap has already made it do without. Bases as they are come first."""
    found: dict[str, list[Trial]] = {}
    for trial in sorted(TRIALS, key=lambda trial: trial[1]):
        name, _, flags = trial
        if name in BASES:
            quantised = [flag.removeprefix("--load_in_") for flag in flags if flag.startswith("--load_in_")]
            found.setdefault("-".join([name, *quantised]), []).append(trial)
    return dict(sorted(found.items(), key=lambda group: (group[0].count("-"), group[0])))


def under_caps(work: Work, trials: list[Trial]) -> Iterator[Measurement]:
    """A short run for each trial, with previews."""
    for name, cap, flags in trials[: work.scale.cards]:
        settings = {
            "base": name,
            "cap_gb": cap,
            "flags": flags,
            "steps": work.scale.steps,
            "images": work.scale.card_images,
        }
        yield Measurement(settings, partial(under_cap, work, settings))


def run_flags(base: Path, settings: Mapping[str, Any]) -> list[str]:
    """Of the training script, but for the output directory.

    Args:
        base: the folder that `Model.save` has written, or is to write.
    """
    short = short_run(base, settings["images"])
    return [*short, *settings["flags"], *short_flags(settings["steps"]), "--validation_steps", "2"]


def under_cap(work: Work, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether it fits; GB of the GPU at the worst; seconds and iterations, the rollouts before the first in
    them.

    Raises:
        RuntimeError: the training script refused its flags.
    """
    base = work.base(settings["base"])
    with work.directory() as directory:
        line = [*run_flags(base, settings), "--output_dir", str(directory)]
        found = measure(line, settings["cap_gb"])
    if found.get("exit_code") == 2:
        raise RuntimeError("the training script refused its flags")
    return {name: value for name, value in found.items() if name not in ("cap_gb", "device", "arguments")}
