from __future__ import annotations

import pytest
import torch

from critic.advantages import (
    centre_within,
    discounted_returns,
    explained_variance,
    generalized_advantages,
    normalize,
    shaped_rewards,
)


def test_shaped_rewards_telescope() -> None:
    potentials = torch.randn(5, 9)
    rewards = shaped_rewards(potentials)
    assert rewards.shape == (5, 8)
    torch.testing.assert_close(discounted_returns(rewards, 1.0), potentials[:, -1:] - potentials[:, :-1])


def test_returns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    torch.testing.assert_close(
        discounted_returns(rewards, 0.5), torch.tensor([[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]])
    )
    torch.testing.assert_close(discounted_returns(rewards, 0.0), rewards)
    torch.testing.assert_close(discounted_returns(rewards, 1.0), rewards.flip(1).cumsum(1).flip(1))


def test_advantages_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    # delta: 1 + .5*1 - .5 = 1;   0 + .5*-1 - 1 = -1.5;   2 + 0 + 1 = 3
    # A:     1 + .25*-0.75 = .8125;   -1.5 + .25*3 = -.75;   3
    torch.testing.assert_close(
        generalized_advantages(rewards, values, gamma=0.5, lam=0.5), torch.tensor([[0.8125, -0.75, 3.0]])
    )


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_lambda_1_is_the_return_less_the_value(gamma: float) -> None:
    rewards, values = torch.randn(4, 7), torch.randn(4, 7)
    torch.testing.assert_close(
        generalized_advantages(rewards, values, gamma, 1.0), discounted_returns(rewards, gamma) - values
    )


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_lambda_0_is_the_one_step_difference(gamma: float) -> None:
    rewards, values = torch.randn(4, 7), torch.randn(4, 7)
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    torch.testing.assert_close(
        generalized_advantages(rewards, values, gamma, 0.0), rewards + gamma * following - values
    )


def test_perfect_values_leave_no_advantage_at_any_lambda() -> None:
    rewards = torch.randn(4, 7)
    for lam in (0.0, 0.5, 1.0):
        advantages = generalized_advantages(rewards, discounted_returns(rewards, 0.9), 0.9, lam)
        torch.testing.assert_close(advantages, torch.zeros(4, 7), atol=1e-5, rtol=0)


def test_centring_is_by_group_and_step() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0], [7.0, 70.0]])
    original = x.clone()
    centred = centre_within(x, torch.tensor([5, 5, 2]))
    torch.testing.assert_close(centred, torch.tensor([[-1.0, -10.0], [1.0, 10.0], [7.0, 70.0]]))
    assert torch.equal(x, original)


def test_normalising_divides_by_each_steps_spread_keeps_signs_and_clips() -> None:
    x = torch.cat([torch.randn(64, 3) * torch.tensor([0.01, 1.0, 100.0]), torch.full((64, 1), 3.0)], dim=1)
    scaled = normalize(x, clip=1e9)
    torch.testing.assert_close(scaled[:, :3].std(dim=0, unbiased=False), torch.ones(3))
    assert torch.equal(scaled[:, :3].sign(), x[:, :3].sign())
    assert torch.equal(scaled[:, 3], torch.zeros(64))  # no spread, nothing to learn
    assert normalize(x, clip=0.5).abs().max() == 0.5


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[0.0, 1.0, 5.0, 1.0], [2.0, -1.0, 5.0, -1.0]])
    values = torch.tensor([[10.0, 0.0, 1.0, -1.0], [12.0, 0.0, 2.0, 1.0]])
    # a constant off; nothing known; returns that do not vary; the opposite
    torch.testing.assert_close(explained_variance(values, returns), torch.tensor([1.0, 0.0, 0.0, -3.0]))
