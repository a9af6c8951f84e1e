"""What a checkpoint in one file says of itself: names of empty tensors that other programs look for, and the
header of Stability's model metadata standard (https://github.com/Stability-AI/ModelSpec)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import (
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import safe_open

from pipelines.supported import Unsupported

logger = logging.getLogger(__name__)

MARKS: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
"""Settings of the scheduler by the tensor that stands for them."""
PREDICTIONS = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "sample": "sample",
}
"""As headers write them."""
CLASSES: dict[str, type] = {
    "stable-diffusion-v1": StableDiffusionPipeline,
    "stable-diffusion-v2": StableDiffusionPipeline,
    "stable-diffusion-xl-v1-base": StableDiffusionXLPipeline,
}
"""By the beginning of the architecture."""


def scheduler_settings(path: Path, cls: type, prediction_type: str | None = None) -> dict[str, Any]:
    """The scheduler's settings that the checkpoint is for, as far as it says.

    Args:
        cls: what its tensors are.
        prediction_type: what it is asked to predict; what it says about that is left out.

    Raises:
        Unsupported: it says that it is something else, or contradicts itself.
    """
    with safe_open(path, "pt") as file:
        names, header = set(file.keys()), file.metadata() or {}
    kind = header.get("modelspec.architecture", "")
    said = next((of for beginning, of in CLASSES.items() if kind.startswith(beginning)), cls)
    if said is not cls:
        raise Unsupported(f"{path} says that it is a {kind}, and its tensors are a {cls.__name__}'s.")
    settings = {name: value for mark in MARKS.keys() & names for name, value in MARKS[mark].items()}
    if prediction_type is not None:
        settings.pop("prediction_type", None)
        return settings
    written = header.get("modelspec.prediction_type") or ("v" if kind.endswith("-v") else None)
    prediction = PREDICTIONS.get(str(written).strip().casefold())
    if written and prediction is None:
        raise Unsupported(
            f"{path} says that it predicts {written!r}; supported are {', '.join(sorted(set(PREDICTIONS)))}. "
            "If it is wrong, say what is right with --prediction_type."
        )
    marked = settings.get("prediction_type")
    if prediction and marked and prediction != marked:
        raise Unsupported(
            f"{path} contradicts itself: its header says {prediction}, and its tensor v_pred says {marked}. "
            "Say which is right with --prediction_type."
        )
    return settings | ({"prediction_type": prediction} if prediction else {})


def as_declared(scheduler: SchedulerMixin, settings: Mapping[str, Any], path: Path) -> SchedulerMixin:
    """The scheduler with the settings that a checkpoint declares; what changes is said.

    Args:
        settings: by `scheduler_settings`.
    """
    config = scheduler.config
    changes = {name: value for name, value in settings.items() if config.get(name) != value}
    if not changes:
        return scheduler
    for name, value in changes.items():
        logger.warning(
            f"{path} says {name} {value}, its configs say {config.get(name)}: the checkpoint is right."
        )
    # Not every sampler knows zero terminal SNR.
    known = changes.keys() <= inspect.signature(type(scheduler)).parameters.keys()
    return (type(scheduler) if known else DDIMScheduler).from_config({**config, **changes})
