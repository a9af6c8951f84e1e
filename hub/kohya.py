"""The same adapter in kohya's format, which ComfyUI and AUTOMATIC1111 load:
`lora_unet_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

These add alpha / rank * up @ down to a module's weight; keys and header are those of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft

from hub.adapter import KOHYA_NAME, read_adapter_metadata
from hub.factors import lora_config, read_factors
from hub.files import read_file, write_file
from hub.names import original_name

BASE_VERSIONS = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}
"""sd-scripts' names of the bases, by ModelSpec's."""
ORIGINAL_LAYOUT = "stable-diffusion-xl-v1-base"
"""The base whose modules have the original layout's names in sd-scripts, not diffusers'."""


def save_kohya(directory: str | Path, path: str | Path | None = None) -> Path:
    """Write a directory's adapter in kohya's format as well, complete or not at all.

    Args:
        path: the file. Default: `pytorch_lora_weights_kohya.safetensors` in the directory.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no adapter, or it has parts that the format has no keys for.
    """
    path = Path(path or Path(directory) / KOHYA_NAME)
    header = read_adapter_metadata(directory)
    config = lora_config(header)
    header.pop(LORA_ADAPTER_METADATA_KEY, None)
    tensors, _ = read_file(Path(directory) / LORA_WEIGHT_NAME_SAFE)
    converted = to_kohya(tensors, config)
    if header.get("modelspec.architecture", "").startswith(ORIGINAL_LAYOUT):
        converted = in_original_layout(converted, read_factors(tensors, config))
    write_file(path, converted, header | kohya_header(header, converted))
    return path


def to_kohya(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """LoRA matrices of a UNet by kohya's names, with the alphas they were trained with.

    Args:
        tensors: by diffusers' names, `unet.<module>.lora.down.weight` (rank, in, ...) and
            `.lora.up.weight` (out, rank, ...).
        config: peft's, from diffusers' header; without one alpha is the rank, as diffusers reads it.

    Raises:
        NotPairs: there are tensors other than pairs of such matrices.
    """
    alphas = {
        f"lora_unet_{module.replace('.', '_')}.alpha": torch.tensor(f.alpha)
        for module, f in read_factors(tensors, config).items()
    }
    return convert_state_dict_to_kohya(convert_unet_state_dict_to_peft(dict(tensors))) | alphas


def in_original_layout(
    tensors: Mapping[str, torch.Tensor], modules: Iterable[str]
) -> dict[str, torch.Tensor]:
    """kohya's tensors with module names of the original layout, which sd-scripts' own SDXL UNet uses.

    ComfyUI, AUTOMATIC1111 and diffusers load SDXL adapters by these names and by diffusers'; sd-scripts only
    by these.

    Args:
        tensors: by `to_kohya`.
        modules: of the UNet, by diffusers' names.

    Raises:
        ValueError: the original layout has no such module.
    """
    renamed = {
        f"lora_unet_{module.replace('.', '_')}": f"lora_unet_{original_name(module).replace('.', '_')}"
        for module in modules
    }
    return {
        ".".join([renamed[name.split(".", 1)[0]], name.split(".", 1)[1]]): tensor
        for name, tensor in tensors.items()
    }


def kohya_header(header: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sd-scripts' keys, from an adapter's header and its tensors by kohya's names."""
    ranks = {len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_down.weight")}
    alphas = {tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")}
    base = header.get("modelspec.architecture", "unknown").removesuffix("/lora")
    title = header.get("modelspec.title", "LoRA")
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_base_model_version": BASE_VERSIONS.get(base, base),
        "ss_v2": str(base.startswith("stable-diffusion-v2")),
        "ss_output_name": re.sub(r"\W+", "-", title).strip("-"),
    }
