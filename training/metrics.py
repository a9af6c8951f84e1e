"""The metrics of an iteration, under stable names."""

from __future__ import annotations

import torch

from critic.advantages import centre_within, explained_variance
from environment.environment import Environment, ForgetScore, RetainScore
from policy.update import UpdateStats

BAR = {
    "forgotten": "forgotten",
    "replaced": "replaced",
    "forget": "forget_reward",
    "retain": "retain_reward",
    "kl": "retain_kl",
    "ev": "explained_variance",
    "clip": "clip_fraction",
}
"""The metrics that matter, by their name in the progress bar."""


def image_metrics(
    env: Environment, score: ForgetScore, check: RetainScore, recognisable: float
) -> dict[str, float]:
    """Mean metrics of an iteration's images.

    An image counts as replaced if the concept is gone and its nearest anchor's cosine is at least
    `recognisable`. `retain_drop_error` is the standard error of `retain_drop`.
    """
    return {
        "forget_reward": score.terminal.mean().item(),
        "noisy_reward": score.potentials[:, :-1].mean().item(),
        "shortfall": env.reward.shortfall(score.terminal).mean().item(),
        "forgotten": score.forgotten.float().mean().item(),
        "replaced": (score.forgotten & (score.replacement >= recognisable)).float().mean().item(),
        "replacement": score.replacement.mean().item(),
        "contrast": score.contrast.mean().item(),
        "retain_reward": check.reward.mean().item(),
        "retain_drop": check.drop.mean().item(),
        "retain_drop_error": (check.drop.std(correction=0) / len(check.drop) ** 0.5).item(),
        "recognised": check.recognised.float().mean().item(),
    }


def critic_metrics(
    env: Environment, values: torch.Tensor, returns: torch.Tensor, groups: torch.Tensor
) -> dict[str, float]:
    """The critic's explained variance within prompts, as a whole and for every denoising step; of values and
    returns (B, T), and prompts (B,)."""
    explained = explained_variance(centre_within(values, groups), centre_within(returns, groups)).tolist()
    by_step = {f"explained_variance/t{t:04d}": v for t, v in zip(env.kernel.labels, explained, strict=True)}
    return {"explained_variance": sum(explained) / len(explained)} | by_step


def update_metrics(env: Environment, stats: UpdateStats) -> dict[str, float]:
    """Diagnostics of an update, as a whole and for every denoising step."""
    metrics = {
        "first_ratio_deviation": stats.first_ratio_deviation,
        "skipped_updates": float(stats.skipped),
    }
    for name in (
        "clip_fraction",
        "approx_kl",
        "step_kl",
        "retain_kl",
        "anchor_kl",
        "worst_anchor_kl",
        "grad_norm",
    ):
        values = getattr(stats, name)
        metrics[name] = sum(values) / len(values)
    for step, t in enumerate(env.kernel.labels):
        if step in stats.by_step:
            rows = torch.tensor(stats.by_step[step]).mean(dim=0).tolist()
            names = (f"ratio_mean/t{t:04d}", f"ratio_std/t{round(t):04d}", f"clip_fraction/t{round(t):04d}")
            metrics |= dict(zip(names, rows, strict=True))
    return metrics


def advantage_metrics(env: Environment, advantages: torch.Tensor) -> dict[str, float]:
    """Of advantages (B, T): the fraction of trajectories that teach nothing, and the mean size at every
    denoising step."""
    size = advantages.abs()
    metrics = {
        "dead_samples": (size < 1e-6).all(dim=1).float().mean().item(),
        "advantage_size": size.mean().item(),
    }
    by_step = {
        f"advantage_size/t{t:04d}": size[:, step].mean().item() for step, t in enumerate(env.kernel.labels)
    }
    return metrics | by_step
