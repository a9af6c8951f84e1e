"""The loss that all learning probes minimise: the UNet's prediction error on noised images of the concept."""

from __future__ import annotations

import torch

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning
from pipelines.noise import NoiseSchedule


def denoising_loss(
    backbone: Backbone,
    schedule: NoiseSchedule,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    *,
    conditioning: Conditioning,
) -> torch.Tensor:
    """|prediction - target|^2 (Ho et al., 2020, eq. 14); the target is what the base was trained on: noise,
    velocity or the image.

    Args:
        latents, noise: (B, C, h, w).
        timesteps: (B,) int64.
        conditioning: of length B.

    Returns:
        (B,), averaged over C, h, w. Differentiable.
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    predicted = backbone.output(noisy, timesteps, conditioning, 1.0).float()
    return (predicted - schedule.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def draw_noise(
    schedule: NoiseSchedule, latents: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps (B,) and noise of the latents' shape, from a generator on the CPU."""
    timesteps = torch.randint(len(schedule), (len(latents),), generator=generator)
    return timesteps.to(latents.device), torch.randn(latents.shape, generator=generator).to(latents.device)
