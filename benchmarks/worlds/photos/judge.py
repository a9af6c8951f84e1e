"""How the judge of photographs is trained: the recipe of Jordan's Muon on CIFAR-10, in batches small enough
for a processor.

A fixed whitening layer, orthogonalised steps for the filters, smoothed labels and shuffled passes
(https://arxiv.org/abs/2404.00498, https://github.com/KellerJordan/cifar10-airbench).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.worlds.canvas.fit import Moving, fit, trained
from benchmarks.worlds.canvas.models import pixels
from benchmarks.worlds.muon import Muon
from benchmarks.worlds.photos.data import Photos
from evaluation.judge import Judge

BATCH, SMOOTHING = 250, 0.1
FILTERS, HEADS, BIASES = {"lr": 0.1, "momentum": 0.8, "orthogonal": True}, {"lr": 0.08}, {"lr": 0.007}


def whitening(images: torch.Tensor, count: int, side: int) -> torch.Tensor:
    """Filters (count, 3, side, side) whose responses are uncorrelated and of one variance over images (N, 3,
    H, W) in [-1, 1], and their negatives.

    As a network's first layer they shorten its training by half
    (https://myrtle.ai/learn/how-to-train-your-resnet-8-bag-of-tricks, 2019; Jordan, 2024,
    https://arxiv.org/abs/2404.00498).
    """
    patches = F.unfold(images, side).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(patches.T.cov())
    filters = (directions / (variances + 5e-4).sqrt()).T.flip(0)[: count // 2]
    return torch.cat([filters, -filters]).unflatten(1, (3, side, side))


def pass_order(step: int, count: int, size: int, seed: int) -> torch.Tensor:
    """(size,) indices of batch number `step` of passes over `count` items, each pass in an order of its
    own; none comes twice in a pass."""
    position = torch.arange(step * size, (step + 1) * size)
    passes = [
        torch.Generator().manual_seed(seed * 1_000_003 + number)
        for number in (position // count).unique().tolist()
    ]
    orders = torch.cat([torch.randperm(count, generator=generator) for generator in passes])
    return orders[position - position[0] // count * count]


def train_judge(
    photos: Photos,
    judge: Judge,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    device: str = "cpu",
    save_every: int = 500,
) -> None:
    """Train a judge of pooled blocks whose one domain is "object", in place; `augment` is given float
    images in [-1, 1]."""
    stem = judge.stem[0].weight.requires_grad_(False)
    stem.copy_(whitening(pixels(photos.images[:1000]), len(stem), stem.shape[-1]))
    judge.to(device, memory_format=torch.channels_last)

    def loss_fn(step: int, generator: torch.Generator) -> torch.Tensor:
        index = pass_order(step, len(photos.images), BATCH, seed)
        images = augment(pixels(photos.images[index]), generator)
        logits = judge(images.to(device, memory_format=torch.channels_last))["object"]
        return F.cross_entropy(logits, photos.labels[index].to(device), label_smoothing=SMOOTHING)

    def recipe(model: nn.Module, steps: int) -> Moving:
        parameters, heads = trained(model), set(judge.heads.parameters())
        filters = [p for p in parameters if p.ndim == 4]
        others = [p for p in parameters if p.ndim < 4 and p not in heads]
        muon = Muon(
            [
                {"params": filters, **FILTERS},
                {"params": [p for p in parameters if p in heads], **HEADS},
                {"params": others, **BIASES},
            ]
        )
        return muon, torch.optim.lr_scheduler.LambdaLR(muon, lambda step: 1 - step / steps)

    fit("judge", judge, loss_fn, recipe, steps=steps, state_dir=state_dir, seed=seed, save_every=save_every)
    judge.to(memory_format=torch.contiguous_format)
