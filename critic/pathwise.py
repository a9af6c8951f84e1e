"""The slope of a step's value in the state that the step led to, and its size: pathwise credit, as pure
functions.

A step's value is Q(x_t, x_{t-1}) = r_t + gamma V(x_{t-1}). Its advantage says whether the noise that a step
happened to add was good; among D numbers of noise that is one number. The value is a differentiable function
of x_{t-1}, so its slope says for each of them which way leads on (Heess et al., 2015, arXiv 1510.09142; Gu et
al., 2017, arXiv 1611.02247).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from policy.trajectory import Trajectory


def value_slopes(trajectory: Trajectory, value: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """dQ/dx_{t-1} at the states that a trajectory passed through: (B, T, C, H, W).

    Args:
        trajectory: B trajectories of T steps, on the device that `value` computes on.
        value: (B, C, H, W) states and their index -> (B,) values, differentiable. The finished latent is not
            asked for, since it is scored as an image: the last step has slope zero.
    """
    slopes = torch.zeros_like(trajectory.latents[:, 1:], dtype=torch.float32)
    for state in range(1, trajectory.num_steps):
        x = trajectory.latents[:, state].detach().float().requires_grad_(True)
        with torch.enable_grad():
            (slopes[:, state - 1],) = torch.autograd.grad(value(x, state).sum(), x)
    return slopes


def slope_scale(slopes: torch.Tensor, stds: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the advantage that slopes (B, T, C, H, W), wherever they lie, make of a step's
    noise, to first order: (T,)."""
    return stds * slopes.square().sum(dim=(2, 3, 4)).to(stds.device).mean(dim=0).sqrt()


def scaled(slopes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Slopes (B, T, C, H, W) in units of `scale` (T,); a step whose scale is zero stays without slope."""
    return (
        torch.where(scale > 1e-8, 1 / scale.clamp(min=1e-8), torch.zeros_like(scale))[
            None, :, None, None, None
        ]
        * slopes
    )


def linear_advantages(trajectory: Trajectory, slopes: torch.Tensor) -> torch.Tensor:
    """What slopes (B, T, C, H, W) make of the noise that each step added: (B, T), zero on average."""
    noise = trajectory.latents[:, 1:].float() - trajectory.means.float()
    return (slopes * noise).sum(dim=(2, 3, 4))
