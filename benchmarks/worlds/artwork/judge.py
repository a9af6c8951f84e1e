"""What the judge of artwork is trained on: pictures worse than drawings, as a pipeline draws them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SHIFT = 3
"""Pixels by which a picture is moved either way, at most."""


SOFTEST = 0.33
"""Part of its side to which a picture is reduced, at least."""
TOGETHER = 4
"""Pictures that are reduced to the same side."""


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, S, S) in [-1, 1] -> the same shape: moved by up to SHIFT pixels, softened, with other contrast,
    and with noise.

    An autoencoder blurs and a denoiser leaves traces; a judge that has only seen clean drawings is lost on
    what a pipeline draws, where a person is not.
    """
    count, _, side, _ = x.shape
    offsets = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(side)
    padded = F.pad(x, [SHIFT] * 4, mode="replicate").permute(0, 2, 3, 1)
    x = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    x = torch.cat([soften(some, generator) for some in x.split(TOGETHER)])
    chance = torch.rand((2, count, 1, 1, 1), generator=generator)
    x = x * (0.7 + 0.4 * chance[0])
    return x + 0.15 * chance[1] * torch.randn(x.shape, generator=generator)


def soften(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, S, S) -> the same shape: reduced to a random side between SOFTEST of S and S, and enlarged
    again."""
    side = x.shape[-1]
    less = int(torch.randint(round(SOFTEST * side), side + 1, (), generator=generator))
    reduced = F.interpolate(x, size=less, mode="bilinear", antialias=True)
    return F.interpolate(reduced, size=side, mode="bilinear")
