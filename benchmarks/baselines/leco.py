"""LECO (github.com/p1atdev/LECO): ESD's objective with a prompt of its own for each of its terms, as a
low-rank adapter:

    ε_θ(x_t, target)  ←  ε(x_t, neutral) - g (ε(x_t, positive) - ε(x_t, unconditional)),

ε without the adapter, squared error, x_t drawn by the model that is being trained, under `target`, up to a
random step of DDIM.

Published: LoRA of rank 4 and alpha 1 on all of self- and cross-attention, g 1, guidance 3 while denoising, 50
DDIM steps, AdamW 1e-4, 500 updates of one or two states; neutral and unconditional are the empty prompt,
target and positive the concept.

Here: target and positive are the forget prompts, neutral and unconditional their anchors; learning rate 2e-3,
100 updates of 8 states, 16 DDIM steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.baselines.task import Prompts, Task, draw
from benchmarks.baselines.trainer import Training, Watch, train_lora
from reward.concept import ConceptSpec

TITLE = "LECO (github.com/p1atdev/LECO)"


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        erase_scale: g.
        guidance_scale: while denoising.
        num_inference_steps: of DDIM.
        prompts: what `entries` makes the prompt file of.
    """

    learning_rate: float = 2e-3
    steps: int = 100
    batch_size: int = 8
    rank: int = 4
    lora_alpha: float = 1.0
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    erase_scale: float = 1.0
    guidance_scale: float = 3.0
    num_inference_steps: int = 16
    prompts: Prompts = Prompts.SPEC


class Entry(NamedTuple):
    """What a prompt file of LECO says of one target, with `action: erase`."""

    target: str
    positive: str
    neutral: str
    unconditional: str


def entries(spec: ConceptSpec, prompts: Prompts) -> list[Entry]:
    """The concept's name as LECO's own example has it; or each forget prompt with each of its anchors,
    from which it is to differ by nothing."""
    if prompts == Prompts.NAME:
        return [Entry(concept, concept, "", "") for concept in spec.concepts]
    return [
        Entry(p, p, anchor, anchor)
        for p, row in zip(spec.forget_prompts, spec.anchors, strict=True)
        for anchor in row
    ]


def leco_target(
    neutral: torch.Tensor, positive: torch.Tensor, unconditional: torch.Tensor, erase_scale: float
) -> torch.Tensor:
    """`action: erase`: what the prediction under the target is trained towards; all (B, C, H, W)."""
    return neutral - erase_scale * (positive - unconditional)


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""
    file = entries(task.spec, settings.prompts)

    def loss(generator: torch.Generator) -> torch.Tensor:
        target, *others = zip(*draw(file, settings.batch_size, generator), strict=True)
        done = int(torch.randint(1, settings.num_inference_steps, (), generator=generator))
        x, t = task.denoise(
            target,
            done,
            generator,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        positive, neutral, unconditional = task.predict_base(x, t, *others)
        return F.mse_loss(
            task.predict(x, t, target), leco_target(neutral, positive, unconditional, settings.erase_scale)
        )

    train_lora(task, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": 0}
