"""The worst of the text states around a prompt's, against what is known of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from policy.adversary import worst_case

STATES, APART = (
    torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)),
    torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)),
)


def lengths(states: torch.Tensor) -> torch.Tensor:
    return states.flatten(1).norm(dim=1)


@pytest.mark.parametrize("radius", [0.25, 1.0])
def test_nothing_in_the_ball_is_worse_for_a_linear_loss(radius: float) -> None:
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    reach = radius * lengths(APART)
    worst = worst_case(STATES, gradient, APART, radius)
    torch.testing.assert_close(lengths(worst - STATES), reach)
    found = ((worst - STATES) * gradient).sum(dim=(1, 2))
    others = torch.randn(1000, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    others = others / others.flatten(2).norm(dim=2)[..., None, None] * reach[:, None, None]
    assert ((others * gradient).sum(dim=(2, 3)) < found).all()


def test_the_loss_has_no_unit_and_every_prompt_its_own_ball() -> None:
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    worst = worst_case(STATES, gradient, APART, 0.5)
    torch.testing.assert_close(worst_case(STATES, 1e-6 * gradient, APART, 0.5), worst)
    torch.testing.assert_close(worst_case(STATES[1:2], gradient[1:2], APART[1:2], 0.5), worst[1:2])


def test_what_does_not_matter_and_what_is_its_own_anchor_stay() -> None:
    assert torch.equal(worst_case(STATES, torch.zeros_like(STATES), APART, 0.5), STATES)
    assert torch.equal(worst_case(STATES, torch.ones_like(STATES), torch.zeros_like(STATES), 0.5), STATES)


def test_padding_stays_whatever_the_loss_says_of_it() -> None:
    states, apart = (F.pad(part, (0, 2, 0, 3)) for part in (STATES, APART))
    gradient = torch.ones_like(states)
    worst = worst_case(states, gradient, apart, 0.5)
    torch.testing.assert_close(
        worst, F.pad(worst_case(STATES, gradient[:, :4, :5], APART, 0.5), (0, 2, 0, 3))
    )


def test_states_of_half_precision_move_in_single_precision() -> None:
    half = STATES.bfloat16().requires_grad_()
    worst = worst_case(half, torch.ones_like(STATES).bfloat16(), APART.bfloat16(), 0.01)
    assert worst.dtype == torch.float32 and not worst.requires_grad
    torch.testing.assert_close(
        lengths(worst - half.float()),
        0.01 * lengths(APART.bfloat16().float()),
        rtol=1e-3,
        atol=0,
    )
