"""HiRM, high-level representation misdirection (Lee et al., 2026, arXiv 2602.19631): the first block of the
text encoder is trained until its last block represents the concept as something else,

    L = 1/T Σ_t |h_t - c d_t|²,

h_t what the last block's self-attention puts out at token t of T, padding included, after its output
projection. HiRM-R: d_t is a random unit vector and c 500. HiRM-S: d_t is the base's own h_t for a text of a
more general concept ("Painting" for "Van Gogh") and c is 1. HiRM-S is the better of the two on UnlearnCanvas,
and the default here.

Published: all weights of the first block's attention and perceptron; the concept's name as the only text;
AdamW 5e-5, one text an update; styles 30 updates (HiRM-R 40), objects 15 (25); nothing is preserved. The
equations, settings and numbers are as summaries of the paper have them, and HiRM-R was checked against the
authors' training script; for HiRM-S no code was at hand. That script draws the random numbers from [0, 1) and
norms all tokens together; here each token's vector is normal and has norm 1, as the paper says.

Here: the texts are the forget prompts and d is of one anchor of each, of a class that the seed decides, token
by token as they stand; with the concept's name d is of the empty text, for the spec knows no more general
word. A LoRA of rank 8 on the same layers, whose biases stay. It lies on the text encoder, so every prompt is
encoded with it, and a prompt of the base without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

from benchmarks.baselines.task import Prompts, Task, draw
from benchmarks.baselines.trainer import Training, Watch, lower
from reward.concept import ConceptSpec

TITLE = "HiRM (arXiv 2602.19631)"


class Direction(StrEnum):
    """HiRM-R or HiRM-S."""

    RANDOM = "random"
    SEMANTIC = "semantic"


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        direction: what d_t is.
        random_scale: c of HiRM-R.
        semantic_scale: c of HiRM-S.
        prompts: the texts, as `pairs` has it.
    """

    learning_rate: float = 1e-3
    steps: int = 100
    batch_size: int = 8
    rank: int = 8
    lora_alpha: float = 8.0
    target_modules: tuple[str, ...] = (
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
        "layers.0.self_attn.v_proj",
        "layers.0.self_attn.out_proj",
        "layers.0.mlp.fc1",
        "layers.0.mlp.fc2",
    )
    direction: Direction = Direction.SEMANTIC
    random_scale: float = 500.0
    semantic_scale: float = 1.0
    prompts: Prompts = Prompts.SPEC


def pairs(spec: ConceptSpec, prompts: Prompts, generator: torch.Generator) -> list[tuple[str, str]]:
    """Texts to erase, each with the one it is to be represented as."""
    if prompts == Prompts.NAME:
        return [(concept, "") for concept in spec.concepts]
    column = int(torch.randint(min(map(len, spec.anchors)), (), generator=generator))
    return [(p, row[column]) for p, row in zip(spec.forget_prompts, spec.anchors, strict=True)]


def representations(pipe: StableDiffusionPipeline, texts: Sequence[str]) -> torch.Tensor:
    """(B, T, E) h of each text, by the text encoder as it is now; differentiable."""
    encoder, tokenizer, found = pipe.text_encoder, pipe.tokenizer, []
    last = [m for name, m in encoder.named_modules() if name.endswith("self_attn.out_proj")][-1]
    ids = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    handle = last.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        encoder(ids.to(encoder.device))
    finally:
        handle.remove()
    return found[0]


def hirm_loss(found: torch.Tensor, directions: torch.Tensor, scale: float) -> torch.Tensor:
    """The equation above, as a mean over the texts.

    Args:
        found: (B, T, E) h.
        directions: (B, T, E) d, or (T, E) the same for all.
        scale: c.
    """
    return (found - scale * directions).square().sum(-1).mean()


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's text encoder; returns facts for results.json."""
    chance = torch.Generator().manual_seed(seed)
    texts, others = zip(*pairs(task.spec, settings.prompts, chance), strict=True)
    with torch.no_grad():
        directions = representations(task.pipe, others)
    scale = settings.semantic_scale
    if settings.direction == Direction.RANDOM:
        normal = torch.randn(directions.shape[1:], generator=chance).to(directions)
        directions, scale = F.normalize(normal, dim=-1).expand_as(directions), settings.random_scale
    rows = list(range(len(texts)))

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = draw(rows, settings.batch_size, generator)
        return hirm_loss(representations(task.pipe, [texts[i] for i in drawn]), directions[drawn], scale)

    lower(task.pipe.text_encoder, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": 0}
