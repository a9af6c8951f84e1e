"""Check that an adapter that a pipeline has loaded is complete, matches its file, and changes something.

`load_lora_weights` ignores tensors that it cannot use and tensors that a file lacks, with a warning at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from hub.formats import by_peft_names
from hub.names import KOHYA, in_text_model, original_name
from pipelines.backbone import Backbone


def loaded_adapters(pipe: DiffusionPipeline) -> set[str]:
    """Names of the adapters that any component carries."""
    return {name for names in pipe.get_list_adapters().values() for name in names}


def carriers(pipe: DiffusionPipeline, adapter: str) -> list[str]:
    """The components that carry an adapter."""
    return [component for component, names in pipe.get_list_adapters().items() if adapter in names]


def find_fault(pipe: DiffusionPipeline, adapter: str, path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with an adapter that was loaded without an error, and what to do, as the end of a
    sentence; empty if nothing is.

    Args:
        adapter: its name in the pipeline.
        path: its file.
        tensors: what the file holds.
    """
    if adapter not in loaded_adapters(pipe):
        return "has no weights for this pipeline; load it into the kind of model that it was trained on."
    given, held = (
        _names_in_file(pipe, path) | {name for name in tensors if "dora_scale" in name},
        _held(pipe, adapter),
    )
    if given - held.keys():
        strange = sorted(given - held.keys())
        return (
            f"has {len(strange)} of {len(given)} tensors that this pipeline has no place for, such as {strange[0]}; "
            "load it into its own base."
        )
    if held.keys() - given:
        absent = sorted(held.keys() - given)
        return f"lacks {len(absent)} of {len(held)} tensors, such as {absent[0]}; fetch or train it again."
    strange = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if strange:
        return f"holds NaN or infinite values in {min(strange)}; fetch or train it again."
    if not any(tensor.any() for name, tensor in held.items() if "lora_A" not in name):
        return (
            "changes nothing, since all of its lora_B matrices are zero; it is untrained, so train it again."
        )
    if _misread_alphas(pipe, adapter, tensors):
        return (
            "has several alphas, of which diffusers reads one from kohya's format; load "
            f"{LORA_WEIGHT_NAME_SAFE} instead."
        )
    return ""


def _names_in_file(pipe: DiffusionPipeline, path: Path) -> set[str]:
    """The tensors of a file, in any format that diffusers reads, by component and peft's names."""
    given = {"unet_config": pipe.unet.config} if Backbone.of(pipe).component == "unet" else {}
    found = pipe.lora_state_dict(str(path.parent), weight_name=path.name, use_safetensors=True, **given)
    return set(by_peft_names(found[0] if isinstance(found, tuple) else found))


def _held(pipe: DiffusionPipeline, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors in the pipeline, by component and peft's names."""
    return {
        in_text_model(f"{component}.{name}"): tensor
        for component in carriers(pipe, adapter)
        for name, tensor in get_peft_model_state_dict(getattr(pipe, component), adapter_name=adapter).items()
    }


def _misread_alphas(pipe: DiffusionPipeline, adapter: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a module's scale is not the alpha / rank of a file in kohya's format."""
    if Backbone.of(pipe).component != "unet":
        return False
    scales = {
        f"{name}.alpha": (module.scaling[adapter], module.r[adapter])
        for component in carriers(pipe, adapter)
        for layer, module in getattr(pipe, component).named_modules()
        if isinstance(module, LoraLayer) and adapter in module.scaling
        for name in _kohya_names(component, layer, pipe.unet.config)
    }
    alphas = {name: tensor.item() for name, tensor in tensors.items() if name in scales}
    return any(
        not math.isclose(scales[name][0], alpha / scales[name][1], rel_tol=1e-3)
        for name, alpha in alphas.items()
    )


def _kohya_names(component: str, layer: str, unet_config: Mapping[str, Any]) -> list[str]:
    """What a file in kohya's format may call a layer of the component."""
    layers = [in_text_model(f"{component}.{layer}").removeprefix(f"{component}.")]
    xl = unet_config["addition_embed_type"] == "text_time" and unet_config["layers_per_block"] == 2
    if component == "unet" and xl:
        layers.append(original_name(layer))
    return [f"{start}_{name.replace('.', '_')}" for start in KOHYA[component] for name in layers]
