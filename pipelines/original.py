"""Checkpoints in one file, in Stable Diffusion's original layout: whether they are whole, by diffusers' own
renaming."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    fetch_diffusers_config,
)

from common.weights import DamagedWeights, Kind, check_kinds, check_values, kinds_in, kinds_of
from pipelines.supported import PARTS

PARTS_HERE: dict[str, tuple[Any, Callable[..., dict[str, torch.Tensor]], str]] = {
    "unet": (
        UNet2DConditionModel,
        convert_ldm_unet_checkpoint,
        r"model\.diffusion_model\.(time_embed|label_emb|input_blocks|middle_block|output_blocks|out)\..*",
    ),
    "vae": (
        AutoencoderKL,
        convert_ldm_vae_checkpoint,
        r"first_stage_model\.(encoder|decoder|quant_conv|post_quant_conv)\..*",
    ),
}
"""Class, diffusers' renaming, and the names of all its tensors in the file."""
TEXTS = r"(cond_stage_model|conditioner)\.(?!.*position_ids$).*"
"""The names of text encoders' weights, and of what stands beside them."""


def check_header(path: Path, config: str | None, given: Collection[str]) -> None:
    """Refuse a checkpoint whose UNet or VAE is not that of its configs, before any weights are read.

    Args:
        config: the diffusers directory or Hub id with the configs. Default: the one that diffusers infers.
        given: the parts that are not loaded from it.

    Raises:
        DamagedWeights: names, shapes or kinds of numbers differ.
        ValueError, OSError: there are no such configs.
    """
    kinds = kinds_in(path)
    tensors = {name: torch.empty(kind.shape, device="meta") for name, kind in kinds.items()}
    configs = config or fetch_diffusers_config(tensors)["pretrained_model_name_or_path"]
    for part in PARTS_HERE.keys() - given:
        cls, convert, names = PARTS_HERE[part]
        whose, settings = f"The {part} of {path}", cls.load_config(configs, subfolder=part)
        with torch.device("meta"):
            wanted = kinds_of(cls.from_config(settings))
        try:
            renamed = convert(checkpoint=dict(tensors), config=settings)
        except KeyError as error:
            raise DamagedWeights(f"{whose} lacks a tensor ({error.args[0]})") from error
        # A renamed tensor is the file's, or a view of it.
        origin = {id(tensor): name for name, tensor in tensors.items()}
        sources = {name: origin[id(t if t._base is None else t._base)] for name, t in renamed.items()}
        found = {name: Kind(tuple(t.shape), kinds[sources[name]].whole) for name, t in renamed.items()}
        used = set(sources.values())
        left = {name: kind for name, kind in kinds.items() if re.fullmatch(names, name) and name not in used}
        check_kinds(whose, wanted, found | left)
    check_kinds(
        f"The text encoder of {path}",
        {name: kind._replace(whole=False) for name, kind in kinds.items() if re.fullmatch(TEXTS, name)},
        {name: kind for name, kind in kinds.items() if re.fullmatch(TEXTS, name)},
    )


def check_pipeline(
    path: Path, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, given: Collection[str]
) -> None:
    """Refuse a pipeline that was not loaded whole from a checkpoint.

    Args:
        given: the parts that were not loaded from it.

    Raises:
        DamagedWeights: the checkpoint lacks tensors, or holds values that no weight has.
    """
    for part in PARTS[type(pipe)].keys() - given:
        check_values(f"The {part} of {path}", getattr(pipe, part).state_dict())
