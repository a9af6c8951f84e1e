"""An adapter as the update it adds to each module's weight: alpha / rank * up @ down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key

from hub.adapter import read_adapter_metadata
from hub.files import read_file
from hub.formats import as_diffusers_reads, by_peft_names, is_kohya, what_else
from hub.names import LAYERS, TEXT_ENCODERS


class Factors(NamedTuple):
    """One module's pair of LoRA matrices: `down` (rank, in, ...), `up` (out, rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        """The factor of up @ down."""
        return self.alpha / self.rank


class NotPairs(ValueError):
    """An adapter of something else than pairs of LoRA matrices of a UNet or a transformer and of text
    encoders."""


def adapter_factors(path: Path) -> dict[str, Factors]:
    """The matrices of an adapter by component and module, `unet.mid_block.…` or `text_encoder.text_model.…`:
    a file in diffusers' format, in peft's or in kohya's.

    Raises:
        UnreadableAdapter: it cannot be read.
        NotPairs: there are tensors other than pairs of such matrices; the message names the file.
    """
    tensors, _ = read_file(path)
    try:
        if other := what_else(tensors):
            raise NotPairs(f"it {other}")
        if is_kohya(tensors):
            return _from_kohya(tensors)
        with as_diffusers_reads(path, tensors) as file:
            state = tensors if file == path else read_file(file)[0]
            return read_factors(state, read_adapter_metadata(file.parent, file.name))
    except NotPairs as error:
        raise NotPairs(f"The adapter {path} cannot be converted or merged: {error}") from error


def read_factors(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> dict[str, Factors]:
    """The matrices of an adapter by component and module, with the alphas they were trained with.

    Args:
        tensors: by diffusers' names, `unet.<module>.lora.down.weight` and `.lora.up.weight`, or by peft's.
        header: as `hub.adapter.read_adapter_metadata` decodes it; where it has no settings alpha is the rank,
            as diffusers reads it.

    Raises:
        NotPairs: there are tensors other than pairs of such matrices, or those of a pair differ in rank.
    """
    state = by_peft_names(tensors)
    denoiser = "transformer" if any(name.startswith("transformer.") for name in state) else "unet"
    configs = {component: lora_config(header, component) for component in (denoiser, *TEXT_ENCODERS)}
    modules = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    pairs = {
        f"{module}.lora_{matrix}.weight"
        for module in modules
        for matrix in "AB"
        if module.partition(".")[0] in configs
    }
    if not pairs or pairs != state.keys():
        strange = min(pairs ^ state.keys(), default="nothing at all")
        raise NotPairs(
            f"it must hold pairs of LoRA matrices of a {denoiser} and text encoders only, and has {strange}."
        )
    factors: dict[str, Factors] = {}
    for module in modules:
        down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
        if down.ndim < 2 or up.ndim < 2 or len(down) != up.shape[1]:
            raise NotPairs(
                f"the matrices of {module} do not fit each other: {tuple(down.shape)} and {tuple(up.shape)}."
            )
        component, _, name = module.partition(".")
        factors[module] = Factors(down, up, module_alpha(name, len(down), configs[component]))
    return factors


def by_component(adapter: Mapping[str, Factors]) -> dict[str, dict[str, Factors]]:
    """An adapter's matrices of each component, by module."""
    parts: dict[str, dict[str, Factors]] = {}
    for name, factors in adapter.items():
        component, _, module = name.partition(".")
        parts.setdefault(component, {})[module] = factors
    return parts


def _from_kohya(tensors: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    """diffusers renames alphas otherwise than matrices: each is renamed again in the place of its `up`."""
    pairs = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    try:
        alphas = {
            name: tensors.get(name.replace(".lora_up.weight", ".alpha"), torch.tensor(float(up.shape[1])))
            for name, up in pairs.items()
            if name.endswith(".lora_up.weight")
        }
        state, alphas = _from_kohya_names(pairs), _from_kohya_names(pairs | alphas)
    except (ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise NotPairs(f"diffusers cannot read its keys: {str(error).strip().splitlines()[0]}") from error
    return {
        module: factors._replace(alpha=alphas[f"{module}.lora_B.weight"].item())
        for module, factors in read_factors(state, {}).items()
    }


def _from_kohya_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's matrices, whose modules have the original layout's names or diffusers', by peft's names."""
    blocks = SimpleNamespace(layers_per_block=LAYERS)
    state, _ = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=blocks)
    return by_peft_names(state)


def lora_config(header: Mapping[str, Any], component: str = "unet") -> dict[str, Any]:
    """peft's settings of a component's adapter, from a header decoded by `hub.adapter.read_adapter_metadata`.

    Raises:
        ValueError: an alpha is not a number.
    """
    config = {
        name.removeprefix(f"{component}."): value
        for name, value in header.get(LORA_ADAPTER_METADATA_KEY, {}).items()
        if name.startswith(f"{component}.")
    }
    alphas = config.get("alpha_pattern")
    if not isinstance(alphas, dict | None) or not all(
        isinstance(alpha, int | float) for alpha in [config.get("lora_alpha", 1), *(alphas or {}).values()]
    ):
        raise ValueError(f"The adapter's {LORA_ADAPTER_METADATA_KEY} has an alpha that is not a number.")
    return config


def module_alpha(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The alpha for which alpha / rank is peft's factor of this module's update."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config.get("lora_alpha", rank))
    return alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)
