"""The gradient of a step's value in the state that the step led to, and its size: pathwise credit, as pure
functions.

A step's value is Q(x_t, x_{t-1}) = r_t + gamma V(x_{t-1}). Its advantage says whether the noise that a step
happened to add was good; among D numbers of noise that is one number. The value is a differentiable function
of x_{t-1}, so its gradient says for each of them which way leads on (Heess et al., 2015, arXiv 1510.09142; Gu
et al., 2017, arXiv 1611.02247).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from policy.trajectory import Trajectory


def action_gradients(
    trajectory: Trajectory, value: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """dQ/dx_{t-1} at the states that a trajectory passed through: (B, T, C, H, W).

    Args:
        trajectory: B trajectories of T steps, on the device that `value` computes on.
        value: (B, C, H, W) states and their index -> (B,) values, differentiable. The finished latent is not
            asked for, since it is scored as an image: the last step has gradient zero.
    """
    gradients = torch.zeros_like(trajectory.latents[:, 1:], dtype=torch.float32)
    for state in range(1, trajectory.num_steps):
        x = trajectory.latents[:, state].detach().float().requires_grad_(True)
        with torch.enable_grad():
            (gradients[:, state - 1],) = torch.autograd.grad(value(x, state).sum(), x)
    return gradients


def gradient_scale(gradients: torch.Tensor, stds: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the advantage that gradients (B, T, C, H, W), wherever they lie, make of a step's
    noise, to first order: (T,)."""
    return stds * gradients.square().sum(dim=(2, 3, 4)).to(stds.device).mean(dim=0).sqrt()


def scaled(gradients: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Gradients (B, T, C, H, W) in units of `scale` (T,); a step whose scale is zero stays at zero."""
    return (
        torch.where(scale > 1e-8, 1 / scale.clamp(min=1e-8), torch.zeros_like(scale))[
            None, :, None, None, None
        ]
        * gradients
    )


def linear_advantages(trajectory: Trajectory, gradients: torch.Tensor) -> torch.Tensor:
    """What gradients (B, T, C, H, W) make of the noise that each step added: (B, T), zero on average."""
    noise = trajectory.latents[:, 1:].float() - trajectory.means.float()
    return (gradients * noise).sum(dim=(2, 3, 4))
