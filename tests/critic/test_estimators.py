from __future__ import annotations

from typing import Any

import pytest
import torch

from critic.advantages import centre_within, generalized_advantages, shaped_rewards
from critic.estimators import ADVANTAGES, Estimator

POTENTIALS = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
VALUES = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def test_a_step_is_credited_with_its_own_change_and_the_finished_image() -> None:
    expected = shaped_rewards(POTENTIALS) - VALUES + POTENTIALS[:, -1:]
    torch.testing.assert_close(Estimator.named("step").advantages(POTENTIALS, VALUES), expected)
    torch.testing.assert_close(Estimator.named("step").returns(POTENTIALS), shaped_rewards(POTENTIALS))


def test_gae_lies_between_its_ends() -> None:
    for name, lam in (("td", 0.0), ("mc", 1.0), ("gae", 0.7)):
        found = Estimator.named(name, gae_lambda=0.7).advantages(POTENTIALS, VALUES)
        torch.testing.assert_close(
            found, generalized_advantages(shaped_rewards(POTENTIALS), VALUES, 1.0, lam)
        )
    for end in ("td", "mc"):
        lam = {"td": 0.0, "mc": 1.0}[end]
        torch.testing.assert_close(
            Estimator.named("gae", gae_lambda=lam).advantages(POTENTIALS, VALUES),
            Estimator.named(end).advantages(POTENTIALS, VALUES),
        )


def test_monte_carlo_is_the_terminal_reward_less_potential_and_value() -> None:
    """Potential-based rewards telescope: what is left of the return is phi(x_0) - phi(x_t)."""
    torch.testing.assert_close(
        Estimator.named("mc").advantages(POTENTIALS, VALUES), POTENTIALS[:, -1:] - POTENTIALS[:, :-1] - VALUES
    )


def test_ddpo_credits_every_step_with_the_finished_image_whatever_the_noisy_states_promised() -> None:
    estimator = Estimator.named("ddpo")
    assert not estimator.uses_critic
    torch.testing.assert_close(
        estimator.advantages(POTENTIALS, torch.zeros(6, 8)), POTENTIALS[:, -1:].expand(6, 8)
    )


def test_a_terminal_signal_forgets_the_noisy_states() -> None:
    estimator = Estimator.named("mc", signal="terminal")
    torch.testing.assert_close(estimator.advantages(POTENTIALS, VALUES), POTENTIALS[:, -1:] - VALUES)
    other = torch.cat([torch.randn(6, 8), POTENTIALS[:, -1:]], dim=1)
    torch.testing.assert_close(estimator.returns(other), estimator.returns(POTENTIALS))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 3.0), ({"gamma": 0.5}, 5.0), ({"gamma": 1.0, "signal": "terminal"}, 4.0)],
    ids=["potential", "both", "critic alone"],
)
def test_the_value_of_a_step_is_the_potential_it_led_to_and_the_critics_value_of_it(
    settings: dict[str, Any], expected: float
) -> None:
    estimator = Estimator.named("pathwise", **settings)
    assert estimator.pathwise and estimator.uses_critic == bool(settings)
    assert estimator.action_value(torch.tensor([3.0]), torch.tensor([4.0])).item() == expected


@pytest.mark.parametrize("name", ADVANTAGES)
def test_no_estimator_prefers_anything_where_all_images_turned_out_alike(name: str) -> None:
    potentials = POTENTIALS[:1].repeat(4, 1)
    advantages = Estimator.named(name).advantages(potentials, VALUES[:1].repeat(4, 1))
    torch.testing.assert_close(
        centre_within(advantages, torch.zeros(4)), torch.zeros(4, 8), atol=1e-6, rtol=0
    )


def test_undiscounted_credit_adds_up_to_the_finished_image() -> None:
    """With values that know the state's potential, both ends of GAE give a trajectory its terminal reward:
    step by step, or at once."""
    exact = -POTENTIALS[:, :-1]  # the value of a state whose finished image is worth 0 on average
    torch.testing.assert_close(
        Estimator.named("td").advantages(POTENTIALS, exact).sum(1), POTENTIALS[:, -1], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        Estimator.named("mc").advantages(POTENTIALS, exact)[:, 0], POTENTIALS[:, -1], atol=1e-5, rtol=0
    )


def test_settings_of_ones_own_replace_those_of_the_name() -> None:
    assert Estimator.named("step", gamma=0.5, terminal_weight=0.0) == Estimator(0.5, 0.0, 0.0)
    assert Estimator.named("gae", gae_lambda=0.3) == Estimator(1.0, 0.3, 0.0)
