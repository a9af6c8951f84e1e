"""What the judge of artwork is trained on: pictures worse than drawings, as a pipeline draws them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SHIFT = 3
"""Pixels by which a picture is moved either way, at most."""


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, S, S) in [-1, 1] -> the same shape: moved by up to SHIFT pixels, half of them reduced to half
    the side and enlarged again, with other contrast, and with noise.

    An autoencoder blurs and a denoiser leaves traces; a judge that has only seen clean drawings is lost on
    what a pipeline draws.
    """
    count, _, side, _ = x.shape
    offsets = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(side)
    padded = F.pad(x, [SHIFT] * 4, mode="replicate").permute(0, 2, 3, 1)
    x = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    chance = torch.rand((3, count, 1, 1, 1), generator=generator)
    x = torch.where(chance[0] < 0.5, soft, x)
    x = x * (0.7 + 0.4 * chance[1])
    return x + 0.15 * chance[2] * torch.randn(x.shape, generator=generator)
