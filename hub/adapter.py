"""Adapter files: diffusers' LoRA format with rank, alpha and targets in the header, and our own keys beside them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file


def save_adapter(directory: str | Path, unet: UNet2DConditionModel, adapter_name: str = "default", metadata: Mapping[str, str] | None = None) -> Path:
    """Write the UNet's adapter as `pytorch_lora_weights.safetensors`, complete or not at all.

    `pipe.load_lora_weights(directory)` restores it as it was trained, also where alpha differs from rank.

    Args:
        unet: the bare UNet (not a distributed wrapper) that carries the adapter.
        metadata: our keys at the top level of the header: `concept` (a text, or several as a JSON list),
            `base_model_name_or_path`, method, versions.

    Returns:
        The path of the file.

    Raises:
        ValueError: the UNet has no such adapter, or a key of the metadata is taken by diffusers.
    """
    config = getattr(unet, "peft_config", {}).get(adapter_name)
    if config is None:
        raise ValueError(f"The UNet has no adapter named {adapter_name!r}.")
    taken = {LORA_ADAPTER_METADATA_KEY, "format"} & set(metadata or {})
    if taken:
        raise ValueError(f"The header key {min(taken)!r} belongs to diffusers.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=adapter_name))
    # diffusers renames the matrices of attention layers alone, and where it finds both spellings it loads the other layers alone.
    layers = {name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): tensor for name, tensor in layers.items()}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".adapter-") as aside:
        StableDiffusionPipeline.save_lora_weights(
            aside,
            unet_lora_layers=layers,
            unet_lora_adapter_metadata=_decisive(config),
        )
        written = Path(aside) / LORA_WEIGHT_NAME_SAFE
        header = _header(written) | dict(metadata or {})
        complete = written.with_suffix(".complete")
        save_file(load_file(written), complete, metadata=header)
        os.replace(complete, directory / LORA_WEIGHT_NAME_SAFE)
    return directory / LORA_WEIGHT_NAME_SAFE


def read_adapter_metadata(directory: str | Path) -> dict[str, Any]:
    """The header of a directory's adapter; `lora_adapter_metadata` (rank, alpha, targets as `unet.r`, …) is decoded.

    Raises:
        ValueError: there is no adapter, or its file is not safetensors.
    """
    path = Path(directory) / LORA_WEIGHT_NAME_SAFE
    try:
        header: dict[str, Any] = _header(path)
        if LORA_ADAPTER_METADATA_KEY in header:
            header[LORA_ADAPTER_METADATA_KEY] = json.loads(header[LORA_ADAPTER_METADATA_KEY])
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not an adapter: {error}") from error
    return header


def _decisive(config: LoraConfig) -> dict[str, Any]:
    """Rank, alpha and whatever is not peft's default; releases of peft before this one refuse settings that they do not know."""
    defaults = LoraConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if name in ("r", "lora_alpha") or value != defaults[name]}


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
