"""ESD-x, erasing by negative guidance (Gandikota et al., 2023, arXiv 2303.07345):

    ε_θ(x_t, c, t)  ←  ε_θ*(x_t, t) - η (ε_θ*(x_t, c, t) - ε_θ*(x_t, t)),

θ* frozen, squared error, x_t drawn by letting the model that is being trained denoise under c up to a random
step of DDIM. The authors' code also erases c from a prompt p that says more ("erase from"). That is the same
equation with p in place of one c,

    ε_θ(x_t, p, t)  ←  ε_θ*(x_t, p, t) - (1 + η) (ε_θ*(x_t, c, t) - ε_θ*(x_t, t)).

Published: cross-attention alone ("x"), η 1, guidance 3 while denoising, 50 DDIM steps, 1,000 updates of one
state, learning rate 1e-5.

Here: p are the forget prompts, c the concept's name; a LoRA of rank 8 on all of cross-attention, learning
rate 1e-3, 100 updates of 8 states, 16 DDIM steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines.task import Prompts, Task, draw
from benchmarks.baselines.trainer import Training, Watch, train_lora
from reward.concept import ConceptSpec
from reward.concept.words import contains_concept

TITLE = "ESD-x (arXiv 2303.07345)"


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        eta: how far beyond the unconditional prediction the target lies.
        guidance_scale: while denoising.
        num_inference_steps: of DDIM.
        prompts: what c is erased from, as `erasures` has it.
    """

    learning_rate: float = 1e-3
    steps: int = 100
    batch_size: int = 8
    rank: int = 8
    lora_alpha: float = 8.0
    target_modules: tuple[str, ...] = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
    eta: float = 1.0
    guidance_scale: float = 3.0
    num_inference_steps: int = 16
    prompts: Prompts = Prompts.SPEC


def erasures(spec: ConceptSpec, prompts: Prompts) -> list[tuple[str, str]]:
    """Pairs of p and c: the concept's name from itself, or from each forget prompt that names it."""
    if prompts == Prompts.NAME:
        return [(concept, concept) for concept in spec.concepts]
    corpus = [*spec.forget_prompts, *spec.retain_prompts]
    return [
        (p, next((c for c in spec.concepts if contains_concept(p, c, corpus)), spec.concepts[0]))
        for p in spec.forget_prompts
    ]


def esd_target(
    prompted: torch.Tensor, conditional: torch.Tensor, unconditional: torch.Tensor, eta: float
) -> torch.Tensor:
    """What the prediction under p is trained towards, from the frozen base's under p, under c and without a
    prompt; all (B, C, H, W).

    Where p is c this is the paper's: unconditional - eta (conditional - unconditional).
    """
    return prompted - (1 + eta) * (conditional - unconditional)


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""

    pairs = erasures(task.spec, settings.prompts)

    def loss(generator: torch.Generator) -> torch.Tensor:
        prompts, concepts = zip(*draw(pairs, settings.batch_size, generator), strict=True)
        done = int(torch.randint(settings.num_inference_steps, (), generator=generator))
        x, t = task.denoise(
            prompts,
            done,
            generator,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        prompted, conditional, unconditional = task.predict_base(x, t, prompts, concepts, [""] * len(prompts))
        return F.mse_loss(
            task.predict(x, t, prompts), esd_target(prompted, conditional, unconditional, settings.eta)
        )

    train_lora(task, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": 0}
