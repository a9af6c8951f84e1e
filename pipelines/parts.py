"""The parts of a base that hold weights, loaded whole or refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Qwen3Model, T5EncoderModel

from common.weights import check_floats, check_loaded, check_values, quiet_loaders, weight_files
from pipelines.supported import OPTIONAL, PARTS

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        UNet2DConditionModel,
        SD3Transformer2DModel,
        FluxTransformer2DModel,
        ZImageTransformer2DModel,
        AutoencoderKL,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5EncoderModel,
        Qwen3Model,
    )
}
BESIDE = r"(.*\.)?position_ids|logit_scale|(text|visual)_projection\..*|vision_model\..*"
"""What a text encoder's file may hold beside it: indices of older releases, and the rest of its CLIP."""


def load_parts(
    cls: type, folder: Path, name: str, *, variant: str | None, dtype: torch.dtype, given: Collection[str]
) -> dict[str, Any]:
    """The parts of a pipeline from its diffusers directory.

    Args:
        cls: the pipeline's class.
        name: what messages call the base.
        variant: of the files of those parts that have them.
        given: the parts that are there already.

    Raises:
        DamagedWeights: a part is not whole.
        ValueError, OSError, RuntimeError: a part cannot be loaded.
    """
    wanted = {part: of for part, of in (PARTS[cls] | OPTIONAL.get(cls, {})).items() if part not in given}
    if absent := [part for part in wanted if not (folder / part).is_dir()]:
        raise ValueError(f"there is no {folder / absent[0]}")
    return {
        part: load_part(CLASSES[of], folder / part, f"The {part} of {name}", variant=variant, dtype=dtype)
        for part, of in wanted.items()
    }


def load_part(
    cls: type, place: str | Path, whose: str, *, dtype: torch.dtype, variant: str | None = None
) -> Any:
    """A part from its own directory, or from a Hub id that holds nothing else.

    Args:
        whose: the beginning of the sentence about what is wrong with it.
        variant: of its files, if it has them.

    Raises:
        DamagedWeights: it is not whole.
        ValueError, OSError, RuntimeError: it cannot be loaded.
    """
    variant = variant if weight_files(place, variant) else None
    # transformers names what has another shape only where that is no error.
    lenient = {} if issubclass(cls, ModelMixin) else {"ignore_mismatched_sizes": True}
    with quiet_loaders():
        module, info = cls.from_pretrained(  # type: ignore[attr-defined]
            place, variant=variant, dtype=dtype, use_safetensors=True, output_loading_info=True, **lenient
        )
    check_loaded(whose, info, beside=BESIDE)
    if getattr(module.config, "quantization_config", None) is None:
        check_floats(whose, weight_files(place, variant), module)
    check_values(whose, module.state_dict())
    return module
