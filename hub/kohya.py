"""The same adapter in kohya's format, which ComfyUI and AUTOMATIC1111 load:
`lora_unet_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`; of a transformer
`lora_transformer_<module>`, which ComfyUI and OneTrainer know for Stable Diffusion 3 and FLUX; of a text
encoder `lora_te_<module>`, but `lora_te1_<module>` and `lora_te2_<module>` for SDXL and transformers.

These add alpha / rank * up @ down to a module's weight; keys and header are those of kohya-ss/sd-scripts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE

from hub.adapter import find_adapter, read_adapter_metadata
from hub.concepts import kohya_name
from hub.factors import Factors, adapter_factors
from hub.files import read_names, write_file
from hub.formats import PEFT_NAME, is_kohya
from hub.names import KOHYA, original_name

logger = logging.getLogger(__name__)

BASE_VERSIONS = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}
"""sd-scripts' names of the bases, by ModelSpec's."""
ORIGINAL_LAYOUT = "stable-diffusion-xl-v1-base"
"""The base whose modules have the original layout's names in sd-scripts, not diffusers'."""
OF_Z_IMAGE = ("transformer.layers.", "transformer.noise_refiner.", "transformer.context_refiner.")
"""How names of Z-Image's modules begin."""


def save_kohya(adapter: str | Path, path: str | Path | None = None) -> Path:
    """Write an adapter in kohya's format as well, complete or not at all.

    Args:
        adapter: a directory, a file or an id on the Hub, as `hub.adapter.find_adapter` takes it.
        path: the file. Default: beside the adapter, called after its concept, or after the adapter's file if
            that has a name of its own.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no adapter, it has parts that the format has no keys for, or it is for Z-Image,
            whose modules ComfyUI does not know by these names.
    """
    source = find_adapter(adapter)
    if is_kohya(read_names(source)):
        raise ValueError(f"The adapter {source} is in kohya's format already; use it as it is.")
    header = read_adapter_metadata(source.parent, source.name)
    of_file = source.name not in (LORA_WEIGHT_NAME_SAFE, PEFT_NAME)
    path = Path(
        path or source.with_name(f"{source.stem}_kohya.safetensors" if of_file else kohya_name(header))
    )
    header.pop(LORA_ADAPTER_METADATA_KEY, None)
    factors = adapter_factors(source)
    if any(module.startswith(OF_Z_IMAGE) for module in factors):
        raise ValueError(
            f"For Z-Image ComfyUI does not know these names. It loads diffusers', at a strength of alpha / rank: use {source} as it is."
        )
    converted = to_kohya(factors, header.get("modelspec.architecture", ""))
    write_file(path, converted, header | kohya_header(header, converted))
    return path


def save_twin(directory: str | Path) -> None:
    """Write a directory's adapter in kohya's format too, or say why not: without it the adapter is worth as
    much."""
    try:
        save_kohya(directory)
    except ValueError as error:
        logger.warning(f"No file for ComfyUI and its like was written: {error}")


def to_kohya(factors: Mapping[str, Factors], architecture: str = "") -> dict[str, torch.Tensor]:
    """LoRA matrices by kohya's names, with the alphas they were trained with.

    The modules of SDXL's UNet have the original layout's names, which sd-scripts' own has: ComfyUI,
    AUTOMATIC1111 and diffusers load them by these names and by diffusers', sd-scripts only by these.

    Args:
        factors: by component and module, by diffusers' names.
        architecture: the base's, by ModelSpec.

    Raises:
        ValueError: the original layout has no such module.
    """
    xl = architecture.startswith(ORIGINAL_LAYOUT)
    numbered = xl or any(name.startswith(("transformer.", "text_encoder_2.")) for name in factors)
    tensors: dict[str, torch.Tensor] = {}
    for key, pair in factors.items():
        component, _, module = key.partition(".")
        layer = original_name(module) if xl and component == "unet" else module
        name = f"{KOHYA[component][-1 if numbered else 0]}_{layer.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": pair.down, f"{name}.lora_up.weight": pair.up}
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
    return tensors


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
