"""open_clip's preprocessing for images that are tensors already, in all of its modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from open_clip.transform import (
    CenterCropOrPad,
    MaybeConvertMode,
    MaybeToTensor,
    ResizeKeepRatio,
    center_crop_or_pad,
)
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize
from torchvision.transforms.functional import resize

Step = Callable[[torch.Tensor], torch.Tensor]


def for_tensors(preprocess: Compose) -> Compose:
    """What open_clip does to a picture, for (B, 3, H, W) in [0, 1].

    Args:
        preprocess: by `open_clip.create_model_and_transforms`, for evaluation.

    Raises:
        ValueError: it has a step that is not known.
    """
    return Compose([step for one in preprocess.transforms for step in _on_tensors(one)])


def _on_tensors(step: object) -> list[Step]:
    match step:
        case MaybeConvertMode() | MaybeToTensor():
            return []
        case Resize() | CenterCrop() | Normalize():
            return [step]
        case ResizeKeepRatio():
            return [partial(_resize_keep_ratio, step)]
        case CenterCropOrPad():
            return [partial(center_crop_or_pad, output_size=step.size, fill=step.fill / 255)]
    raise ValueError(f"open_clip's preprocessing has a step that is not known here: {type(step).__name__}.")


def _resize_keep_ratio(step: ResizeKeepRatio, images: torch.Tensor) -> torch.Tensor:
    """The step itself asks a picture for its size."""
    height, width = images.shape[-2:]
    size = step.get_params(Image.new("L", (width, height)), step.size, step.longest)
    return resize(images, size, step.interpolation, antialias=True)
