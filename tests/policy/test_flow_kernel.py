"""The kernel of flow matching: Euler's steps without noise, the flow's marginals with it."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from policy.kernel import ReverseKernel

SHIFTS = [{"shift": 1.0}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}]
"""Plain, as Stable Diffusion 3's, by the size of the image as FLUX's, and one that ends early."""
MEAN, STD = 0.7, 0.5
"""Of a Gaussian whose every marginal is known."""


def flow(num_steps: int, **settings: object) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    scheduler.set_timesteps(num_steps, mu=0.8 if scheduler.config.use_dynamic_shifting else None)
    return scheduler


def exact(kernel: ReverseKernel, x: torch.Tensor, step: int) -> torch.Tensor:
    """E[epsilon - x_0 | x], what a perfect network says of the Gaussian."""
    a, variance = kernel.signals[step], kernel.noise_variances[step]
    gain = (x - a * MEAN) / (a**2 * STD**2 + variance)
    return variance.sqrt() * gain - (MEAN + a * STD**2 * gain)


def finished(eta: float, num_steps: int) -> torch.Tensor:
    """(100000,) samples that have gone through all steps."""
    kernel = ReverseKernel.from_flow(flow(num_steps, shift=1.0), eta, min_std=0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_000, 1, 1, 1, generator=generator)
    for step in range(num_steps):
        noise = torch.randn(x.shape, generator=generator)
        x = kernel.mean(exact(kernel, x, step), x, step) + kernel.stds[step] * noise
    return x.flatten()


@pytest.mark.parametrize("settings", SHIFTS, ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("num_steps", [4, 20])
def test_without_noise_a_step_is_diffusers_euler_step(settings: dict[str, object], num_steps: int) -> None:
    scheduler = flow(num_steps, **settings)
    kernel = ReverseKernel.from_flow(scheduler, eta=1e-6, min_std=0.0)
    assert kernel.timesteps.tolist() == [*scheduler.timesteps.tolist(), 0.0]
    generator = torch.Generator().manual_seed(0)
    x, output = (torch.randn(3, 16, 8, 8, generator=generator) for _ in range(2))
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, t, x).prev_sample
        torch.testing.assert_close(kernel.mean(output, x, step), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [1e-6, 0.5, 1.0])
def test_the_marginals_are_the_flows_whatever_the_noise(eta: float) -> None:
    errors = []
    for num_steps in (16, 128):
        x = finished(eta, num_steps)
        assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
        errors.append(abs(x.std().item() - STD))
    assert errors[0] < 0.1 and errors[1] < max(errors[0] / 4, 0.005)


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_small_steps_have_the_noise_of_flow_grpo(level: float) -> None:
    """sigma_t sqrt(dt) with sigma_t = level sqrt(t / (1 - t)) (arXiv 2505.05470, eq. 9 to 12)."""
    scheduler = flow(1000, shift=1.0)
    kernel = ReverseKernel.from_flow(scheduler, level / math.sqrt(2), min_std=0.0)
    t, dt = scheduler.sigmas[:-1], -scheduler.sigmas.diff()
    expected = level * (t / (1 - t)).sqrt() * dt.sqrt()
    middle = slice(100, 900)
    torch.testing.assert_close(kernel.stds[middle], expected[middle], rtol=0.02, atol=0)


def test_every_step_has_a_density_and_keeps_room_for_its_noise() -> None:
    kernel = ReverseKernel.from_flow(flow(16, shift=3.0))
    assert (kernel.stds > 0).all() and kernel.stds.isfinite().all()
    assert (kernel.stds[:-1].square() <= kernel.noise_variances[1:-1] * (1 + 1e-6)).all()
    assert kernel.signals[0] == 0 and kernel.noise_variances[-1] == 0
    assert {x.dtype for x in (kernel.timesteps, kernel.signals, kernel.stds)} == {torch.float32}


def test_a_step_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="eta"):
        ReverseKernel.from_flow(flow(4), eta=0)
