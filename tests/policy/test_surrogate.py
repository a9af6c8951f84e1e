from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from critic.advantages import centre_within, normalize
from policy.kernel import ReverseKernel
from policy.surrogate import clipped_surrogate, log_ratio, pathwise_surrogate


def test_against_numbers_worked_out_by_hand() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0])
    # min(r A, clip(r) A):    1.2*2   -1.5*2  0.5*2  -0.8*2  1.1   -0.9
    expected = -(2.4 - 3.0 + 1.0 - 1.6 + 1.1 - 0.9) / 6
    surrogate = clipped_surrogate(ratio.log(), torch.zeros(6), advantage, clip_range=0.2, dim=1)
    assert surrogate.loss.item() == pytest.approx(expected, abs=1e-6)
    assert surrogate.clip_fraction.item() == pytest.approx(4 / 6)
    assert surrogate.ratio_mean.item() == pytest.approx(1.0, abs=1e-6)
    assert surrogate.ratio_std.item() == pytest.approx(math.sqrt((4 * 0.25 + 2 * 0.01) / 6), abs=1e-6)
    assert surrogate.approx_kl.item() == pytest.approx(
        -sum(math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1, 0.9)) / 6, abs=1e-6
    )


def test_only_steps_that_went_too_far_the_right_way_lose_their_gradient() -> None:
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9]).log().requires_grad_()
    clipped_surrogate(
        log_prob, torch.zeros(6), torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0]), clip_range=0.2, dim=1
    ).loss.backward()
    # d loss / d log p = -r A / 6 where it is not clipped.
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 3.0, -1.0, 0.0, -1.1, 0.9]) / 6)


def test_before_an_update_the_ratio_is_exactly_1_and_the_gradient_that_of_reinforce() -> None:
    old = torch.randn(5)
    log_prob, advantage = old.clone().requires_grad_(), torch.randn(5)
    surrogate = clipped_surrogate(log_prob, old, advantage, clip_range=1e-4, dim=256)
    assert (surrogate.ratio_mean.item(), surrogate.ratio_std.item()) == (1.0, 0.0)
    assert (surrogate.clip_fraction.item(), surrogate.approx_kl.item()) == (0.0, 0.0)
    surrogate.loss.backward()
    torch.testing.assert_close(log_prob.grad, -advantage / 5 * 16)


def test_diagnostics_carry_no_gradient() -> None:
    surrogate = clipped_surrogate(
        torch.zeros(3, requires_grad=True), torch.ones(3), torch.ones(3), clip_range=0.2, dim=4
    )
    assert surrogate.loss.requires_grad
    assert not any(
        getattr(surrogate, name).requires_grad
        for name in ("ratio_mean", "ratio_std", "clip_fraction", "approx_kl")
    )


@pytest.mark.parametrize("side", [8, 64])
def test_a_shift_of_s_stds_spreads_the_log_ratio_by_s_at_any_size(side: int) -> None:
    """4 x 8 x 8 = 256 dimensions and 4 x 64 x 64 = 16384: the same clip range means the same movement."""
    shift, std, dim = 0.05, 0.3, 4 * side * side
    kernel = ReverseKernel(
        torch.tensor([500, 0]),
        torch.tensor([0.7, 1.0]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([std]),
        "epsilon",
        1000,
    )
    generator = torch.Generator().manual_seed(0)
    sample = std * torch.randn(400, 4, side, side, generator=generator)
    old, new = (kernel.log_prob(sample, torch.full_like(sample, mean), 0) for mean in (0.0, shift * std))
    assert log_ratio(new, old, dim).std().item() == pytest.approx(shift, rel=0.15)


def learn(
    reward: Callable[[torch.Tensor], torch.Tensor], seed: int, iterations: int = 150, dim: int = 16
) -> torch.Tensor:
    """The mean (dim,) of a Gaussian of standard deviation 1 after so many updates of 64 samples each, two
    passes over every batch."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(dim, requires_grad=True)
    optimizer = torch.optim.Adam([mean], lr=0.03)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x - mean) ** 2).mean(dim=1)

    for _ in range(iterations):
        x = mean.detach() + torch.randn(64, dim, generator=generator)
        old = log_prob(x).detach()
        advantage = normalize(centre_within(reward(x)[:, None], torch.zeros(64)), clip=5.0)[:, 0]
        for _ in range(2):
            loss = clipped_surrogate(log_prob(x), old, advantage, clip_range=0.2, dim=dim).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return mean.detach()


def test_a_quadratic_reward_is_climbed_to_its_optimum() -> None:
    target = torch.linspace(-1.5, 1.5, 16)
    found = learn(lambda x: -((x - target) ** 2).sum(dim=1), seed=0)
    assert (found - target).abs().mean() < 0.15


def test_a_random_reward_gives_no_trend() -> None:
    """Over 24 runs the mean wanders, but to no side: its average is within chance of nowhere."""
    noise = torch.Generator().manual_seed(0)
    ends = torch.stack(
        [
            learn(lambda x: torch.randn(len(x), generator=noise), seed=s, iterations=30).mean()
            for s in range(24)
        ]
    )
    assert ends.mean().abs() < 3 * ends.std() / 24**0.5
    climbed = learn(lambda x: x.sum(dim=1), seed=0, iterations=30).mean()
    assert climbed > 5 * ends.std()


def test_the_pathwise_gradient_is_what_the_likelihood_ratio_comes_to_on_average() -> None:
    """Stein's identity, for a value that is not linear: both say where the mean should go, one of them
    with a thousandth of the samples."""
    std, shape = 0.3, (1, 2, 2, 2)
    kernel = ReverseKernel(
        torch.tensor([500, 0]),
        torch.tensor([0.7, 1.0]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([std]),
        "epsilon",
        1000,
    )
    generator = torch.Generator().manual_seed(0)
    old_mean, direction = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def value(action: torch.Tensor) -> torch.Tensor:
        return ((direction * action).sum(dim=(1, 2, 3)) + 0.2 * action.square().sum(dim=(1, 2, 3))).sin()

    def gradient(count: int, pathwise: bool) -> torch.Tensor:
        action = (old_mean + std * torch.randn(count, *shape[1:], generator=generator)).requires_grad_()
        (gradient,) = torch.autograd.grad(value(action).sum(), action)
        action, advantage = action.detach(), value(action).detach()
        mean = old_mean.clone().requires_grad_()
        new, old = kernel.log_prob(action, mean, 0), kernel.log_prob(action, old_mean, 0)
        if pathwise:
            loss = pathwise_surrogate(
                mean.expand_as(action),
                old_mean.expand_as(action),
                gradient,
                log_prob=new,
                old_log_prob=old,
                std=std,
                clip_range=0.2,
            ).loss
        else:
            loss = clipped_surrogate(new, old, advantage - advantage.mean(), clip_range=0.2, dim=8).loss
        return torch.autograd.grad(loss, mean)[0]

    torch.testing.assert_close(
        gradient(200_000, pathwise=False), gradient(200, pathwise=True), atol=0.03, rtol=0.1
    )


def test_a_mean_that_has_moved_too_far_is_left_out_of_the_pathwise_gradient() -> None:
    old_mean, gradient, nothing = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.zeros(2)
    mean = torch.stack([torch.full((1, 2, 2), 0.05), torch.full((1, 2, 2), 0.07)]).requires_grad_()
    surrogate = pathwise_surrogate(
        mean, old_mean, gradient, log_prob=nothing, old_log_prob=nothing, std=0.3, clip_range=0.2
    )
    assert (
        surrogate.loss.item() == pytest.approx(-(4 * 0.05 / 2) / 2) and surrogate.clip_fraction.item() == 0.5
    )
    surrogate.loss.backward()
    torch.testing.assert_close(mean.grad, torch.stack([torch.full((1, 2, 2), -0.25), torch.zeros(1, 2, 2)]))
