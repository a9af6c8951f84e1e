"""Check that an adapter that a pipeline has loaded is complete, matches its file, and changes something.

`load_lora_weights` ignores tensors that it cannot use and tensors that a file lacks, with a warning at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from hub.names import original_name
from pipelines.backbone import Backbone


def loaded_adapters(pipe: DiffusionPipeline) -> set[str]:
    """Names of the adapters that any component carries."""
    return {name for names in pipe.get_list_adapters().values() for name in names}


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
    denoiser = Backbone.of(pipe).component
    given = {"unet_config": pipe.unet.config} if denoiser == "unet" else {}
    found = pipe.lora_state_dict(str(path.parent), weight_name=path.name, use_safetensors=True, **given)
    state = found[0] if isinstance(found, tuple) else found
    names: set[str] = set()
    for component in (denoiser, "text_encoder", "text_encoder_2"):
        part = {name: state.pop(name) for name in list(state) if name.startswith(f"{component}.")}
        if component == denoiser:
            names |= convert_unet_state_dict_to_peft(part).keys()
        elif part:
            names |= {
                _flat(name) for name in convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
            }
    return names | state.keys()


def _held(pipe: DiffusionPipeline, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors in the pipeline, by component and peft's names."""
    components = [component for component, names in pipe.get_list_adapters().items() if adapter in names]
    return {
        _flat(f"{component}.{name}"): tensor
        for component in components
        for name, tensor in get_peft_model_state_dict(getattr(pipe, component), adapter_name=adapter).items()
    }


def _flat(name: str) -> str:
    """Older transformers, and files still, keep a text encoder's layers in a `text_model`."""
    return name.replace(".text_model.", ".")


def _misread_alphas(pipe: DiffusionPipeline, adapter: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a module's scale is not the alpha / rank of a file in kohya's format."""
    backbone, scales = Backbone.of(pipe), {}
    if backbone.component != "unet":
        return False
    config = pipe.unet.config
    xl = config.addition_embed_type == "text_time" and config.layers_per_block == 2
    for name, module in pipe.unet.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            for spelling in (name, original_name(name)) if xl else (name,):
                scales[f"lora_unet_{spelling.replace('.', '_')}.alpha"] = (
                    module.scaling[adapter],
                    module.r[adapter],
                )
    alphas = {name: tensor.item() for name, tensor in tensors.items() if name in scales}
    return any(
        not math.isclose(scales[name][0], alpha / scales[name][1], rel_tol=1e-3)
        for name, alpha in alphas.items()
    )
