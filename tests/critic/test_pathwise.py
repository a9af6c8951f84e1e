from __future__ import annotations

import torch

from critic.pathwise import action_gradients, gradient_scale, linear_advantages, scaled
from policy.trajectory import Trajectory

STEPS = 4


def random_trajectory(count: int = 3, noise: float = 0.5) -> tuple[Trajectory, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(count, STEPS, 2, 3, 3, generator=generator)
    stds = noise * torch.arange(STEPS, 0, -1)
    added = stds[:, None, None, None] * torch.randn(means.shape, generator=generator)
    latents = torch.cat([torch.randn(count, 1, 2, 3, 3, generator=generator), means + added], dim=1)
    timesteps = torch.tensor([800, 600, 400, 200, 0])
    return Trajectory(
        latents, means, torch.zeros(count, STEPS), timesteps, torch.zeros(count, dtype=torch.int64)
    ), stds


def test_a_gradient_is_taken_where_the_step_led_and_not_at_the_finished_image() -> None:
    trajectory, _ = random_trajectory()
    asked = []

    def value(x: torch.Tensor, state: int) -> torch.Tensor:
        asked.append(state)
        return state * x.square().sum(dim=(1, 2, 3))

    gradients = action_gradients(trajectory, value)
    assert asked == [1, 2, 3]
    for step in range(STEPS - 1):
        torch.testing.assert_close(gradients[:, step], 2 * (step + 1) * trajectory.latents[:, step + 1])
    assert not gradients[:, -1].any() and not gradients.requires_grad


def test_gradients_can_be_had_where_gradients_are_switched_off() -> None:
    trajectory, _ = random_trajectory()
    with torch.no_grad():
        assert action_gradients(trajectory, lambda x, state: x.sum(dim=(1, 2, 3)))[:, 0].eq(1).all()


def test_the_scale_is_the_spread_of_the_advantages_that_gradients_make_of_the_noise() -> None:
    trajectory, stds = random_trajectory(count=20_000)
    gradients = torch.randn(1, STEPS, 2, 3, 3, generator=torch.Generator().manual_seed(1)).expand(
        20_000, -1, -1, -1, -1
    )
    torch.testing.assert_close(
        linear_advantages(trajectory, gradients).std(dim=0),
        gradient_scale(gradients, stds),
        rtol=0.02,
        atol=0,
    )
    in_units = linear_advantages(trajectory, scaled(gradients, gradient_scale(gradients, stds)))
    torch.testing.assert_close(in_units.std(dim=0), torch.ones(STEPS), rtol=0.02, atol=0)


def test_a_step_without_gradient_stays_without() -> None:
    gradients = torch.zeros(2, STEPS, 1, 2, 2)
    assert scaled(gradients, gradient_scale(gradients, torch.ones(STEPS))).eq(0).all()


def test_the_linear_advantage_of_a_linear_value_is_its_advantage() -> None:
    trajectory, _ = random_trajectory()
    direction = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2))
    gradients = action_gradients(trajectory, lambda x, state: (direction * x).sum(dim=(1, 2, 3)))
    gained = (direction * (trajectory.latents[:, 1:] - trajectory.means)).sum(dim=(2, 3, 4))
    torch.testing.assert_close(linear_advantages(trajectory, gradients)[:, :-1], gained[:, :-1])
