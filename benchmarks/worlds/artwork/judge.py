"""How the judge of artwork is trained: one style, several objects, so that it sees both of two."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.worlds.canvas.fit import adamw, fit
from benchmarks.worlds.canvas.models import pixels
from evaluation.judge import Judge

BATCH = 64
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


def train_judge(
    images: torch.Tensor,
    labels: dict[str, torch.Tensor],
    judge: Judge,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    device: str = "cpu",
) -> None:
    """Train every head of `judge`, in place.

    Args:
        images: (N, 3, S, S) uint8.
        labels: by domain, (N,) class indices, or (N, classes) float for the domains in `judge.several`.
    """
    judge.to(device)

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(images), (BATCH,), generator=generator)
        logits = judge(augment(pixels(images[index]), generator).to(device))
        losses = []
        for domain, found in logits.items():
            truth = labels[domain][index].to(device)
            if domain in judge.several:
                losses.append(F.binary_cross_entropy_with_logits(found, truth, reduction="sum") / BATCH)
            else:
                losses.append(F.cross_entropy(found, truth, label_smoothing=0.05))
        return torch.stack(losses).sum()

    fit("judge", judge, loss_fn, adamw(3e-3, weight_decay=0.05), steps=steps, state_dir=state_dir, seed=seed)
    judge.cpu()
