from __future__ import annotations

import math

import pytest
import torch

from policy.kernel import ReverseKernel
from policy.surrogate import clipped_surrogate, log_ratio


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
    assert surrogate.approx_kl.item() == pytest.approx(-sum(math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1, 0.9)) / 6, abs=1e-6)


def test_only_steps_that_went_too_far_the_right_way_lose_their_gradient() -> None:
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 0.9]).log().requires_grad_()
    clipped_surrogate(log_prob, torch.zeros(6), torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0]), clip_range=0.2, dim=1).loss.backward()
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
    surrogate = clipped_surrogate(torch.zeros(3, requires_grad=True), torch.ones(3), torch.ones(3), clip_range=0.2, dim=4)
    assert surrogate.loss.requires_grad
    assert not any(getattr(surrogate, name).requires_grad for name in ("ratio_mean", "ratio_std", "clip_fraction", "approx_kl"))


@pytest.mark.parametrize("side", [8, 64])
def test_a_shift_of_s_stds_spreads_the_log_ratio_by_s_at_any_size(side: int) -> None:
    """4 x 8 x 8 = 256 dimensions and 4 x 64 x 64 = 16384: the same clip range means the same movement."""
    shift, std, dim = 0.05, 0.3, 4 * side * side
    kernel = ReverseKernel(torch.tensor([500, 0]), torch.tensor([0.5, 1.0]), torch.tensor([std]), "epsilon", 1000)
    generator = torch.Generator().manual_seed(0)
    sample = std * torch.randn(400, 4, side, side, generator=generator)
    old, new = (kernel.log_prob(sample, torch.full_like(sample, mean), 0) for mean in (0.0, shift * std))
    assert log_ratio(new, old, dim).std().item() == pytest.approx(shift, rel=0.15)
