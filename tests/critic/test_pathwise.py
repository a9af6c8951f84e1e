from __future__ import annotations

import torch

from critic.pathwise import linear_advantages, scaled, slope_scale, value_slopes
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


def test_a_slope_is_taken_where_the_step_led_and_not_at_the_finished_image() -> None:
    trajectory, _ = random_trajectory()
    asked = []

    def value(x: torch.Tensor, state: int) -> torch.Tensor:
        asked.append(state)
        return state * x.square().sum(dim=(1, 2, 3))

    slopes = value_slopes(trajectory, value)
    assert asked == [1, 2, 3]
    for step in range(STEPS - 1):
        torch.testing.assert_close(slopes[:, step], 2 * (step + 1) * trajectory.latents[:, step + 1])
    assert not slopes[:, -1].any() and not slopes.requires_grad


def test_slopes_can_be_had_where_gradients_are_switched_off() -> None:
    trajectory, _ = random_trajectory()
    with torch.no_grad():
        assert value_slopes(trajectory, lambda x, state: x.sum(dim=(1, 2, 3)))[:, 0].eq(1).all()


def test_the_scale_is_the_spread_of_the_advantages_that_slopes_make_of_the_noise() -> None:
    trajectory, stds = random_trajectory(count=20_000)
    slopes = torch.randn(1, STEPS, 2, 3, 3, generator=torch.Generator().manual_seed(1)).expand(
        20_000, -1, -1, -1, -1
    )
    torch.testing.assert_close(
        linear_advantages(trajectory, slopes).std(dim=0), slope_scale(slopes, stds), rtol=0.02, atol=0
    )
    in_units = linear_advantages(trajectory, scaled(slopes, slope_scale(slopes, stds)))
    torch.testing.assert_close(in_units.std(dim=0), torch.ones(STEPS), rtol=0.02, atol=0)


def test_a_step_without_slope_stays_without() -> None:
    slopes = torch.zeros(2, STEPS, 1, 2, 2)
    assert scaled(slopes, slope_scale(slopes, torch.ones(STEPS))).eq(0).all()


def test_the_linear_advantage_of_a_linear_value_is_its_advantage() -> None:
    trajectory, _ = random_trajectory()
    direction = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2))
    slopes = value_slopes(trajectory, lambda x, state: (direction * x).sum(dim=(1, 2, 3)))
    gained = (direction * (trajectory.latents[:, 1:] - trajectory.means)).sum(dim=(2, 3, 4))
    torch.testing.assert_close(linear_advantages(trajectory, slopes)[:, :-1], gained[:, :-1])
