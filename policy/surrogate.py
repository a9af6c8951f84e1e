"""Surrogate objectives of Gaussian denoising steps: PPO's clipped one (Schulman et al., 2017, arXiv
1707.06347), and the pathwise one."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RatioStats:
    """How far B samples of one step have moved, detached.

    Attributes:
        log_ratio: (B,) log importance ratios, as `log_ratio` scales them.
        outside: (B,) bool, which samples have moved beyond the clip range.
    """

    log_ratio: torch.Tensor
    outside: torch.Tensor

    @property
    def ratio_mean(self) -> torch.Tensor:
        """Mean importance ratio; exactly 1 before the first update."""
        return self.log_ratio.exp().mean()

    @property
    def ratio_std(self) -> torch.Tensor:
        """Its standard deviation."""
        return self.log_ratio.exp().std(unbiased=False)

    @property
    def clip_fraction(self) -> torch.Tensor:
        """Share of samples that have moved beyond the clip range, in [0, 1]."""
        return self.outside.float().mean()

    @property
    def approx_kl(self) -> torch.Tensor:
        """k3 estimate of KL(old || new), non-negative (Schulman, "Approximating KL divergence")."""
        return (self.log_ratio.exp() - 1 - self.log_ratio).mean()


@dataclass(frozen=True)
class Surrogate(RatioStats):
    """The same with the loss: a scalar to minimise, with gradient, the mean over the samples."""

    loss: torch.Tensor


def log_ratio(log_prob: torch.Tensor, old_log_prob: torch.Tensor, dim: int) -> torch.Tensor:
    """Log importance ratio in units that do not depend on the latent's size.

    Arguments are log-densities averaged over the `dim` numbers of a latent. If the mean of the kernel moves
    by s standard deviations in every dimension, the sum over dimensions has standard deviation s sqrt(dim)
    and the average s / sqrt(dim); scaled by sqrt(dim) it is s itself. A clip range of 0.2 then means "a fifth
    of the step's own noise" for a 4x8x8 latent and for a 4x128x128 one alike.
    """
    return (log_prob - old_log_prob) * dim**0.5


def clipped_surrogate(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, clip_range: float, dim: int
) -> Surrogate:
    """-E[min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range) A)] over (B,) samples of one step."""
    difference = log_ratio(log_prob, old_log_prob, dim)
    ratio = difference.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    return Surrogate(difference.detach(), (ratio.detach() - 1).abs() > clip_range, loss)


def pathwise_surrogate(
    mean: torch.Tensor,
    old_mean: torch.Tensor,
    action_gradient: torch.Tensor,
    *,
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    std: torch.Tensor | float,
    clip_range: float,
) -> Surrogate:
    """-E[<dQ/da, mean - old mean>] / sqrt(D): how much of the action's value the step gains, to first order,
    by having moved its mean.

    By Stein's identity E[grad log p(a) Q(a)] = E[grad mean . dQ/da] for a Gaussian p: this has the gradient
    that `clipped_surrogate` has for the advantage Q, in the same units, without the noise of the action it
    was tried with (Mohamed et al., 2020, arXiv 1906.10652, section 5). A sample whose mean has moved by more
    than `clip_range` standard deviations (root mean square) is left out, as clipping does.

    Args:
        mean: (B, C, H, W), with gradient.
        old_mean: (B, C, H, W), of the policy that acted.
        action_gradient: (B, C, H, W), dQ/da at the action that was taken.
        log_prob, old_log_prob: (B,), for the diagnostics alone.
        std: of the step, a number.
        clip_range: how far a mean may move.
    """
    moved = mean - old_mean
    inside = moved.detach().square().mean(dim=(1, 2, 3)).sqrt() <= clip_range * std
    gain = (action_gradient * moved).sum(dim=(1, 2, 3)) / moved[0].numel() ** 0.5
    return Surrogate(
        log_ratio(log_prob, old_log_prob, moved[0].numel()).detach(), ~inside, -(inside * gain).mean()
    )
