"""The clipped surrogate objective of PPO (Schulman et al., 2017, arXiv 1707.06347) for Gaussian denoising steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Surrogate:
    """Loss with gradient, and its diagnostics (detached scalars).

    Attributes:
        loss: scalar to minimise.
        ratio_mean: mean importance ratio; exactly 1 before the first update.
        ratio_std: its standard deviation.
        clip_fraction: share of samples whose ratio is outside the clip range, in [0, 1].
        approx_kl: k3 estimate of KL(old || new), non-negative (Schulman, "Approximating KL divergence").
    """

    loss: torch.Tensor
    ratio_mean: torch.Tensor
    ratio_std: torch.Tensor
    clip_fraction: torch.Tensor
    approx_kl: torch.Tensor


def log_ratio(log_prob: torch.Tensor, old_log_prob: torch.Tensor, dim: int) -> torch.Tensor:
    """Log importance ratio in units that do not depend on the latent's size.

    Arguments are log-densities averaged over the `dim` numbers of a latent. If the mean of the kernel moves by s
    standard deviations in every dimension, the sum over dimensions has standard deviation s sqrt(dim) and the
    average s / sqrt(dim); scaled by sqrt(dim) it is s itself. A clip range of 0.2 then means "a fifth of the
    step's own noise" for a 4x8x8 latent and for a 4x128x128 one alike.
    """
    return (log_prob - old_log_prob) * dim**0.5


def clipped_surrogate(log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, clip_range: float, dim: int) -> Surrogate:
    """-E[min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A)] over (B,) samples of one step."""
    difference = log_ratio(log_prob, old_log_prob, dim)
    ratio = difference.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    with torch.no_grad():
        return Surrogate(
            loss=loss,
            ratio_mean=ratio.mean(),
            ratio_std=ratio.std(unbiased=False),
            clip_fraction=((ratio - 1).abs() > clip_range).float().mean(),
            approx_kl=(ratio - 1 - difference).mean(),
        )
