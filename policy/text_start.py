"""A start in the text encoder: the adapter begins where it reads anchors in place of the concept.

A network is told of a text by its encoder's states h alone. A LoRA on the encoder's first block is trained to
bring those of the forget prompts f to the base's of their anchors a, and to leave those of the texts r to
keep,

    L = E_f|h(f) - h₀(a)|² + k E_r|h(r) - h₀(r)|²,

squares summed over features and tokens, each beside the one of the anchor that stands for it. No image is
drawn and the network is not asked. That the first block is the place, and all that a few updates need, is
HiRM's (arXiv 2602.19631), which keeps nothing. What this does not do, and what it does too much, training
mends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from pipelines.alignment import counterparts
from pipelines.conditioning import Conditioning, batches
from policy.lora import ADAPTER
from policy.policy import Policy

KEEPING = 4.0
"""k."""
UPDATES = 300
LEARNING_RATE = 0.05
"""Of AdamW at first, in units of a layer's own weights (their root mean square), which differ by ten times
between encoders; it falls to 0. Steps in proportion to weights are Adafactor's (arXiv 1804.04235)."""
FORGET, KEPT = 16, 32
"""Texts of an update."""
AT_LEAST = 8
"""Of them go through the encoders together: a text takes less memory than a latent."""


class Distances(NamedTuple):
    """How far texts are from where they should be read, as a share of the way from the concept to its
    anchors; means.

    Attributes:
        forget: of the forget prompts, from their anchors; 1 before anything is learnt.
        kept: of the texts to keep, from what they were; 0 before.
    """

    forget: float
    kept: float


def text_start(
    policy: Policy, anchor_of: Mapping[str, str], kept: Sequence[str], generator: torch.Generator
) -> Distances:
    """Train the adapter on the policy's text encoders, and read its prompts with it; what that came to.

    Args:
        anchor_of: from each forget prompt its anchor.
        kept: texts that are to be read as before.
        generator: what batches are drawn with.
    """
    encoders = list(policy.encoders.values())
    parameters = [p for encoder in encoders for p in encoder.parameters() if p.requires_grad]
    texts = [*anchor_of, *kept]
    with policy.backbone.on_device(*encoders), in_float32(encoders):
        before = read(policy, texts)
        goals = torch.cat([goals_of(policy, anchor_of), before[len(anchor_of) :]])
        way = (before - goals)[: len(anchor_of)].norm(dim=1).mean()
        optimizer = torch.optim.AdamW([rated(layer) for encoder in encoders for layer in adapted(encoder)])
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=UPDATES)
        for _ in range(UPDATES):
            rows, weights = drawn(len(anchor_of), len(kept), generator)
            for part in batches(len(rows), max(AT_LEAST, policy.batch_size)):
                states = flat(policy.backbone.read_texts([texts[i] for i in rows[part]]))
                distance = (states - goals[rows[part]]).square().sum(dim=1)
                (weights[part].to(distance) * distance).sum().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        off = (read(policy, texts) - goals).norm(dim=1) / way
    policy.read_prompts()
    return Distances(off[: len(anchor_of)].mean().item(), off[len(anchor_of) :].mean().item())


def adapted(encoder: PreTrainedModel) -> Iterator[LoraLayer]:
    """The layers that carry the adapter."""
    return (module for module in encoder.modules() if isinstance(module, LoraLayer))


def rated(layer: LoraLayer) -> dict[str, Any]:
    """A layer's matrices with their learning rate, as optimizers take it."""
    size = layer.get_base_layer().weight.float().square().mean().sqrt().item()
    matrices = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    return {"params": matrices, "lr": LEARNING_RATE * size}


def flat(said: Conditioning) -> torch.Tensor:
    """(N, D): states and pooled embedding of each text in one vector."""
    return torch.cat([part.flatten(1) for part in (said.states, said.pooled) if part is not None], dim=1)


@torch.no_grad()
def read(policy: Policy, texts: Sequence[str]) -> torch.Tensor:
    """(N, D) of each text, flat."""
    together = batches(len(texts), policy.backbone.usual_texts)
    return torch.cat([flat(policy.backbone.read_texts(list(texts[rows]))) for rows in together])


@torch.no_grad()
def goals_of(policy: Policy, anchor_of: Mapping[str, str]) -> torch.Tensor:
    """(N, D): for the states of each forget prompt those of its anchor that stand for them, and the anchor's
    pooled embedding; flat."""
    tokenizer, found = policy.backbone.tokenizers[0], []
    for prompt, anchor in anchor_of.items():
        said = policy.backbone.read_texts([anchor])
        order = counterparts(tokenizer, (prompt, anchor), said.states.shape[1])
        found.append(flat(replace(said, states=said.states[:, order])))
    return torch.cat(found)


def drawn(forget: int, kept: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the texts of an update, the kept ones after the forget ones, and the weight of each."""
    asked = torch.randint(forget, (FORGET,), generator=generator)
    held = forget + torch.randint(kept, (KEPT,), generator=generator)
    weights = torch.cat([torch.full((FORGET,), 1 / FORGET), torch.full((KEPT,), KEEPING / KEPT)])
    return torch.cat([asked, held]), weights


@contextmanager
def in_float32(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, weights that are not trained are in float32, for gradients that half precision would lose; no
    weight changes."""
    frozen = [p for module in modules for p in module.parameters() if not p.requires_grad]
    dtypes = [p.dtype for p in frozen]
    for parameter in frozen:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in zip(frozen, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
