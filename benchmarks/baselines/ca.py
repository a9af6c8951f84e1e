"""Concept ablation, model-based (Kumari et al., 2023, arXiv 2303.13516): images of the target are drawn as
those of an anchor are,

    E |ε_θ(x_t, c*) - ε(x_t, c)|²  +  λ E |ε_θ(x_t, c) - noise|²,

c* a prompt of the target, c the same with an anchor in its place, x_t noised images of c that the base itself
has drawn. The second term is the denoising loss on these images, the regularisation. The paper puts ε_θ
without its gradient for ε, to keep no second model in memory; with an adapter the base is always at hand, and
ε is the base.

Published: keys and values of cross-attention, AdamW 2e-6 (times batch and GPUs), 100 updates of 8 images, 200
images of the anchor, λ 1 where the regularisation is on, which in the authors' script it is not by default.

Here: c* are the forget prompts and c their anchors; a LoRA of rank 8 on the same layers, learning rate 1e-3,
200 updates, images of 16 DDIM steps. λ is 0: with 1 the adapter lost what it is to keep, presumably since it
learns from images that guidance has drawn and is guided once more when it draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines.task import Task, draw
from benchmarks.baselines.trainer import Training, Watch, train_lora
from pipelines.noise import NoiseSchedule

TITLE = "Concept Ablation, model-based (arXiv 2303.13516)"
BATCH = 64
"""Images drawn at a time."""


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        images: number of images of anchors that are drawn first.
        regularisation: λ.
        guidance_scale: while drawing them.
        num_inference_steps: of DDIM.
    """

    learning_rate: float = 1e-3
    steps: int = 200
    batch_size: int = 8
    rank: int = 8
    lora_alpha: float = 8.0
    target_modules: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    images: int = 200
    regularisation: float = 0.0
    guidance_scale: float = 7.5
    num_inference_steps: int = 16


def ca_loss(
    target: torch.Tensor,
    base_anchor: torch.Tensor,
    anchor: torch.Tensor,
    noise: torch.Tensor,
    regularisation: float,
) -> torch.Tensor:
    """The two terms above.

    Args:
        target: (B, C, H, W) the adapter's prediction under the target's prompts.
        base_anchor: the base's under the anchors', at the same states.
        anchor: the adapter's under the anchors'.
        noise: what the states were noised with, as the model predicts it.
        regularisation: λ.
    """
    return F.mse_loss(target, base_anchor) + regularisation * F.mse_loss(anchor, noise)


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""
    pairs = [
        (prompt, anchor)
        for prompt, row in zip(task.spec.forget_prompts, task.spec.anchors, strict=True)
        for anchor in row
    ]
    generator = torch.Generator().manual_seed(seed)
    captions = draw(pairs, settings.images, generator)
    drawn = [
        task.denoise(
            [anchor for _, anchor in captions[start : start + BATCH]],
            settings.num_inference_steps,
            generator,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )[0]
        for start in range(0, len(captions), BATCH)
    ]
    images = torch.cat(drawn)
    schedule = NoiseSchedule.of(task.scheduler)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator).tolist()
        prompts, anchors = zip(*(captions[i] for i in rows), strict=True)
        x0, noise = images[rows], torch.randn(images[rows].shape, generator=generator).to(images.device)
        t = torch.randint(len(schedule), (len(rows),), generator=generator).to(images.device)
        x = schedule.add_noise(x0, noise, t)
        (base_anchor,) = task.predict_base(x, t, anchors)
        target, anchor = task.predict(x.repeat(2, 1, 1, 1), t.repeat(2), [*prompts, *anchors]).chunk(2)
        answer = schedule.target(x0, noise, t)
        return ca_loss(target, base_anchor, anchor, answer, settings.regularisation)

    train_lora(task, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": settings.images}
