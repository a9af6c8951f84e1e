"""A start from what the texts alone can do: the adapter begins where cross-attention reads the anchors' texts
in place of the concept's.

A UNet is told of a text by its keys and values W c alone. The change of W that brings those of the forget
prompts' states c_f to those of their anchors' c_a, and leaves those of the states c_r to keep, has a closed
form (TIME, arXiv 2303.08084; UCE, arXiv 2308.14761, eq. 7):

    ΔW = E_f[W (c_a - c_f) c_fᵀ] (E_f[c_f c_fᵀ] + k E_r[c_r c_rᵀ] + λ I)⁻¹

What this does not do, and what it does too much, training mends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import ModelMixin
from peft.tuners.lora import LoraLayer

from pipelines.alignment import aligned
from policy.lora import ADAPTER
from policy.policy import Policy

READERS = ("attn2.to_k", "attn2.to_v")
"""Endings of the layers that are given a text's states."""
KEEPING = 10.0
"""k, how much more what is kept counts than what is brought elsewhere: training forgets what is left sooner
than it restores what was lost."""
DAMPING = 1e-3
"""λ, for a mean square of a state's numbers of 1."""
LEAST = 0.05
"""A direction of ΔW that is weaker than this share of its strongest is left to training."""


def closed_form(
    outputs: torch.Tensor,
    forget: torch.Tensor,
    retain: torch.Tensor,
    *,
    keeping: float = KEEPING,
    damping: float = DAMPING,
) -> torch.Tensor:
    """ΔW (out, E) in float64.

    Args:
        outputs: (N, out), W (c_a - c_f).
        forget: (N, E), c_f.
        retain: (M, E), c_r.
        keeping: k.
        damping: λ in units of the retain states' mean square.
    """
    outputs, forget, retain = outputs.double(), forget.double(), retain.double()
    eye = torch.eye(forget.shape[1], dtype=forget.dtype, device=forget.device)
    kept = forget.T @ forget / len(forget) + keeping * retain.T @ retain / len(retain)
    kept = kept + damping * retain.square().mean() * eye
    return torch.linalg.solve(kept, outputs.T @ forget / len(forget), left=False)


def text_layers(denoiser: ModelMixin) -> Iterator[LoraLayer]:
    """The adapted layers that read a text's states."""
    for name, module in denoiser.named_modules():
        if isinstance(module, LoraLayer) and name.endswith(READERS):
            yield module


def states_of(policy: Policy, pairs: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, E) the text states of some prompts, and beside each its counterpart of another's.

    Args:
        pairs: rows of the prompt table.
    """
    prompts, states = policy.table.prompts, policy.table.conditioning.states
    tokenizer, found, counterparts = policy.backbone.readers[0], [], []
    for row, other in pairs:
        here, there = aligned(tokenizer, (prompts[row], prompts[other]), states.shape[1])
        found.append(states[row, here])
        counterparts.append(states[other, there])
    return torch.cat(found).float(), torch.cat(counterparts).float()


@torch.no_grad()
def warm_start(policy: Policy, anchor_of: dict[int, int], retain_rows: Sequence[int]) -> bool:
    """Put the closed form onto the adapter, as far as its rank goes; whether it has layers that read texts.

    The strongest directions of each ΔW take the first ones of its LoRA, and the others stay as they are: no
    change yet, but ready to learn.

    Args:
        anchor_of: from the row of each forget prompt in the prompt table that of its anchor.
        retain_rows: those of prompts to keep.
    """
    forget, anchors = states_of(policy, list(anchor_of.items()))
    negative = policy.table.negative.states[0].float()
    retain = torch.cat([policy.table.conditioning.states[list(retain_rows)].flatten(0, 1).float(), negative])
    layers = list(text_layers(policy.denoiser))
    for layer in layers:
        base = layer.get_base_layer()
        dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), forget.dtype)
        outputs = (base(anchors.to(dtype)) - base(forget.to(dtype))).float()
        put(layer, closed_form(outputs, forget, retain))
    return bool(layers)


def put(layer: LoraLayer, change: torch.Tensor) -> None:
    """The strongest directions of a change (out, in) of its weight onto a LoRA that changes nothing yet."""
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    left, strength, right = torch.linalg.svd(change / layer.scaling[ADAPTER], full_matrices=False)
    count = min(len(down), int((strength > LEAST * strength[0]).sum()))
    root = strength[:count].sqrt()
    down[:count] = (root[:, None] * right[:count]).to(down)
    up[:, :count] = (left[:, :count] * root).to(up)
