"""ESD-x, erasing by negative guidance (Gandikota et al., 2023, arXiv 2303.07345, eq. 7):

    ε_θ(x_t, c, t)  ←  ε_θ*(x_t, t) - η (ε_θ*(x_t, c, t) - ε_θ*(x_t, t)),

θ* frozen, squared error, x_t drawn by letting the model that is being trained denoise under c up to a random step of DDIM.

Published: cross-attention alone ("x"), η 1, guidance 3 while denoising, 50 DDIM steps, 1,000 updates of one state, learning rate 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baselines.task import Prompts, Task, draw
from benchmarks.baselines.trainer import Training, Watch, train_lora

TITLE = "ESD-x (arXiv 2303.07345)"


@dataclass(frozen=True)
class Settings(Training):
    """What is published, but for what docs/baselines.md says.

    Attributes:
        eta: how far beyond the unconditional prediction the target lies.
        guidance_scale: while denoising.
        num_inference_steps: of DDIM.
        prompts: what c is.
    """

    learning_rate: float = 1e-3
    steps: int = 200
    batch_size: int = 8
    rank: int = 8
    lora_alpha: float = 8.0
    target_modules: tuple[str, ...] = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
    eta: float = 1.0
    guidance_scale: float = 3.0
    num_inference_steps: int = 16
    prompts: Prompts = Prompts.NAME


def esd_target(unconditional: torch.Tensor, conditional: torch.Tensor, eta: float) -> torch.Tensor:
    """What the prediction under the concept is trained towards, from the frozen base's predictions at the same state; all (B, C, H, W)."""
    return unconditional - eta * (conditional - unconditional)


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's UNet; returns facts for results.json."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        prompts = draw(task.targets(settings.prompts), settings.batch_size, generator)
        done = int(torch.randint(settings.num_inference_steps, (), generator=generator))
        x, t = task.denoise(prompts, done, settings.num_inference_steps, settings.guidance_scale, generator)
        conditional, unconditional = task.predict_base(x, t, prompts, [""] * len(prompts))
        return F.mse_loss(task.predict(x, t, prompts), esd_target(unconditional, conditional, settings.eta))

    train_lora(task, settings, loss, seed, watch)
    return {"iterations": settings.steps, "images": 0}
