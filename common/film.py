"""A convolutional trunk whose every block is conditioned by FiLM (Perez et al., 2018, arXiv 1709.07871).

The conditioning starts as the identity (scale 0, shift 0), so that an untrained network treats all
timesteps alike and learns to tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


def timestep_embedding(timesteps: torch.Tensor, dim: int, max_period: float = 10_000.0) -> torch.Tensor:
    """Sinusoidal embedding (B,) -> (B, dim), float32 (Vaswani et al., 2017; Ho et al., 2020)."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    )
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FiLM(nn.Module):
    """x -> x (1 + scale(c)) + shift(c), by channel; the identity at initialisation."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.to_scale_shift = nn.Linear(condition_dim, 2 * channels)
        nn.init.zeros_(self.to_scale_shift.weight)
        nn.init.zeros_(self.to_scale_shift.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.to_scale_shift(condition)[..., None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class FiLMBlock(nn.Module):
    """Pre-activation residual block: norm, FiLM, SiLU, convolution, twice; strided when it downsamples.

    The shortcut skips pixels before its convolution: the gradient of one with a stride writes past its memory
    in torch 2.15 (1x1, 8 channels, channels last, AVX-512).
    """

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.norm1 = nn.GroupNorm(8, in_channels)
        self.film1 = FiLM(condition_dim, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.norm2 = nn.GroupNorm(8, out_channels)
        self.film2 = FiLM(condition_dim, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        h = self.conv1(nn.functional.silu(self.film1(self.norm1(x), condition)))
        h = self.conv2(nn.functional.silu(self.film2(self.norm2(h), condition)))
        return self.shortcut(x[..., :: self.stride, :: self.stride]) + h


class FiLMTrunk(nn.Module):
    """Latents and a condition vector -> pooled features.

    Args:
        in_channels: channels of the latent.
        widths: channels of each stage (multiples of 8); every stage after the first halves the resolution.
        condition_dim: length of the condition vector.
    """

    def __init__(self, in_channels: int, widths: list[int], condition_dim: int) -> None:
        super().__init__()
        self.out_features = 2 * widths[-1]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1)
        ins = [widths[0], *widths]
        self.blocks = nn.ModuleList(
            FiLMBlock(ins[i], ins[i + 1], condition_dim, 1 if i == 0 else 2) for i in range(len(widths))
        )
        self.norm = nn.GroupNorm(8, widths[-1])

    def forward(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), (B, condition_dim) -> (B, out_features): mean and maximum over the positions."""
        h = self.stem(latents)
        for block in self.blocks:
            h = block(h, condition)
        h = nn.functional.silu(self.norm(h))
        return torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=-1)


def size_of(latent_shape: Sequence[int]) -> int | list[int]:
    """How configs write the size of (C, H, W) latents: the side of a square, else [H, W]."""
    _, height, width = latent_shape
    return height if height == width else [height, width]


def shape_text(channels: int, sample_size: int | Sequence[int]) -> str:
    """Channels x height x width, for messages."""
    sides = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return "x".join(str(number) for number in (channels, *sides))


MAX_WIDTH = 512
"""Channels of a stage at most."""


def widths_for(sample_size: int | Sequence[int], width: int, max_width: int = MAX_WIDTH) -> list[int]:
    """Stage widths that bring the longer side of a latent down to four at most: 8 -> 2 stages, 64 -> 5,
    128 -> 6."""
    side = sample_size if isinstance(sample_size, int) else max(sample_size)
    stages = 1 + max(1, math.ceil(math.log2(max(side, 8) / 4)))
    return [min(width * 2**i, max_width) for i in range(stages)]
