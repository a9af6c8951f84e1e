"""Returns and advantages over denoising steps, as pure functions."""

from __future__ import annotations

import torch


def shaped_rewards(potentials: torch.Tensor) -> torch.Tensor:
    """Potential-based step rewards r_t = phi(x_{t-1}) - phi(x_t): (B, T+1) -> (B, T).

    Undiscounted they telescope to phi(x_0) - phi(x_T), so they move no optimum (Ng, Harada and Russell,
    1999).
    """
    return potentials[:, 1:] - potentials[:, :-1]


def discounted_returns(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """G_t = r_t + gamma G_{t+1}: (B, T) -> (B, T)."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        returns[:, t] = following
    return returns


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """GAE (Schulman et al., 2016, arXiv 1506.02438): (B, T) rewards and values -> (B, T); nothing follows
    x_0."""
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        advantages[:, t] = following
    return advantages


def centre_within(x: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Subtract from (B, T) the mean over the rows of the same group (B,), each step by itself; single rows
    stay."""
    centred = x.clone()
    for group in groups.unique():
        rows = groups == group
        if rows.sum() > 1:
            centred[rows] = x[rows] - x[rows].mean(dim=0)
    return centred


def normalize(advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """Divide each step of (B, T) by its standard deviation and clip; a step without spread becomes zero."""
    std = advantages.std(dim=0, unbiased=False)
    scaled = torch.where(std > 1e-8, advantages / std.clamp(min=1e-8), torch.zeros_like(advantages))
    return scaled.clamp(-clip, clip)


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """1 - Var[G - V] / Var[G] of each step: (B, T), (B, T) -> (T,); 0 where the returns do not vary."""
    variance = returns.var(dim=0, unbiased=False)
    residual = (returns - values).var(dim=0, unbiased=False)
    return torch.where(variance > 1e-12, 1 - residual / variance.clamp(min=1e-12), torch.zeros_like(variance))
