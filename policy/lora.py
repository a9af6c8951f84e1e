"""The LoRA adapter on the network that denoises and on text encoders: the only thing that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import ModelMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from transformers import PreTrainedModel

from common.flags import flag
from pipelines.backbone import Backbone

ADAPTER = "default"
TEXT_LAYERS = tuple(
    f"layers.0.{layer}"
    for layer in (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
)
"""Endings of the modules of a CLIP text encoder that are adapted."""


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA adapter."""

    rank: int = flag(8, at_least=1, help="Rank of the LoRA matrices.")
    lora_alpha: float | None = flag(
        None,
        above=0,
        help="Scale of the LoRA update before division by the rank. Default: the rank.",
    )
    lora_target_modules: tuple[str, ...] | None = flag(
        None,
        help="Endings of the modules to adapt. Default: attn2.to_q, .to_k, .to_v and .to_out.0, a UNet's "
        "cross-attention; of a transformer the same of its attention and, where image and text attend to each other, "
        "attn.add_q_proj, .add_k_proj, .add_v_proj and .to_add_out, which project the text.",
    )
    train_text_encoder: bool = flag(
        True,
        negatable=True,
        help="Adapt the first block of the CLIP text encoders too, before anything is drawn: it reads the concept as "
        "its anchors.",
    )

    @property
    def alpha(self) -> float:
        """The scale, or the rank."""
        return self.lora_alpha or self.rank

    def targets(self, backbone: type[Backbone] | Backbone) -> tuple[str, ...]:
        """Endings of the modules that are adapted: those that were named, or the backbone's own."""
        return self.lora_target_modules or backbone.lora_targets


def add_lora(
    network: ModelMixin | PreTrainedModel, rank: int, alpha: float, target_modules: Sequence[str]
) -> list[torch.nn.Parameter]:
    """Freeze a network, add a LoRA to every module whose name ends in one of
    `target_modules`, return its float32 parameters.

    The adapter starts as the identity (B = 0), so the first rollouts are the base model's own.

    Raises:
        ValueError: the rank is not positive, or no module is of that name, so that nothing would be trained.
    """
    if rank < 1:
        raise ValueError(f"--rank must be at least 1 (got {rank}).")
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(target_modules)
    )
    try:
        network.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise ValueError(
            f"No module of the network matches --lora_target_modules {' '.join(target_modules)}, so nothing would be trained."
        ) from error
    cast_training_params(network, dtype=torch.float32)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"The adapter on {' '.join(target_modules)} has no trainable parameters.")
    return parameters


@contextmanager
def base_policy(*networks: ModelMixin | PreTrainedModel) -> Iterator[None]:
    """Within the block the networks are the base's: their adapters are disabled, no second copy is needed."""
    for network in networks:
        network.disable_adapters()
    try:
        yield
    finally:
        for network in networks:
            network.enable_adapters()


def lora_state(network: ModelMixin | PreTrainedModel) -> dict[str, torch.Tensor]:
    """A detached copy of the trainable tensors by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in network.named_parameters() if p.requires_grad}


def is_identity(state: dict[str, torch.Tensor]) -> bool:
    """Whether a copy made by `lora_state` changes nothing."""
    return not any(value.any() for name, value in state.items() if "lora_B" in name)


@torch.no_grad()
def load_lora_state(network: ModelMixin | PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Put a copy made by `lora_state` back, bit for bit.

    Raises:
        ValueError: the state is of other modules or another rank.
    """
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in trainable.items()} != {
        name: value.shape for name, value in state.items()
    }:
        raise ValueError(
            "The saved adapter does not fit this one; it was made with another --rank, other "
            "--lora_target_modules, or another --train_text_encoder."
        )
    for name, parameter in trainable.items():
        parameter.copy_(state[name])
