from __future__ import annotations

import math

import pytest
import torch

from training.control import (
    RollbackConfig,
    RollbackRule,
    StopSignal,
    adapt_coefficient,
    recognisable_from,
)


def test_it_stops_once_the_images_of_the_last_iterations_are_at_the_target() -> None:
    stop = StopSignal(target=0.9, patience=3)
    assert [stop.update(x) for x in (1.0, 1.0, 0.5, 0.9, 1.0, 0.8, 0.9, 1.0)] == [
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_figure_that_is_no_number_is_not_the_target() -> None:
    stop = StopSignal(target=0.0, patience=2)
    assert [stop.update(x) for x in (0.5, math.nan, 0.5, 0.5)] == [False, False, False, True]


def test_a_stop_signal_goes_on_from_where_it_was() -> None:
    assert StopSignal(target=0.9, patience=3, recent=[0.9, 1.0]).update(0.9)
    assert not StopSignal(target=0.9, patience=3, recent=[0.9, 1.0]).update(0.7)


def test_it_stands_still_once_most_is_replaced_and_no_more_than_before() -> None:
    def stands_still(*shares: float, plateau: int = 3) -> list[bool]:
        stop, found = StopSignal(target=1.0, patience=2, plateau=plateau), []
        for share in shares:
            stop.update(share)
            found.append(stop.stands_still)
        return found

    assert stands_still(0.6, 0.7, 0.8, 0.7, 0.7, 0.7) == [False] * 5 + [True]
    assert not any(stands_still(0.6, 0.6, 0.6, 0.7, 0.7, 0.7))
    assert not any(stands_still(*[0.4] * 9)) and not any(stands_still(*[0.7] * 9, plateau=0))
    assert stands_still(0.1, 0.1, 0.1, 0.6, 0.6, 0.6, 0.6)[-1] is False
    patient = StopSignal(target=1.0, patience=5, plateau=1, recent=[0.9, 0.9, 0.9, 0.5, 0.7])
    assert not patient.stands_still  # what was long before does not count
    assert not StopSignal(target=1.1, patience=2, plateau=1, recent=[0.7, 0.7]).stands_still  # never


def test_what_is_recognised_goes_by_what_the_base_reaches_itself() -> None:
    alike, spread = torch.full((40,), 0.8), torch.linspace(0.2, 1.0, 41)
    assert recognisable_from(alike, contrast=0.4) == pytest.approx(0.8 - 0.35 * 0.4)
    assert recognisable_from(spread, contrast=0.4) == pytest.approx(0.24)


RULE = RollbackRule(least_contrast=0.4, max_retain_drop=0.2, max_kl=0.3, max_step_kl=1.0, min_contrast=0.25)
HEALTHY = {"retain_drop": 0.0, "retain_kl": 0.0, "step_kl": 0.0, "contrast": 0.4}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retain_drop": 0.19, "retain_kl": 0.29, "step_kl": 0.99, "contrast": 0.11},
        {"retain_drop": 0.2, "retain_kl": 0.3, "step_kl": 1.0, "contrast": 0.1},
        {"retain_drop": -0.5, "contrast": 0.9},
    ],
)
def test_within_its_bounds_nothing_is_rolled_back(changes: dict[str, float]) -> None:
    assert RULE.reason(**HEALTHY | changes) is None


@pytest.mark.parametrize(
    ("changes", "metrics", "flag"),
    [
        ({"retain_drop": 0.21}, ("0.21", "0.2"), "--kl_coef"),
        ({"retain_kl": 0.31}, ("0.310", "0.3"), "--kl_coef"),
        ({"step_kl": 1.1}, ("1.10", "1"), "--learning_rate"),
        ({"contrast": 0.09}, ("0.090", "0.400"), "--anchor_kl_coef"),
        ({"retain_drop": math.nan}, ("nan", "0.2"), "--kl_coef"),
        ({"retain_kl": math.nan}, ("nan", "0.3"), "--kl_coef"),
        ({"retain_kl": math.inf}, ("inf", "0.3"), "--kl_coef"),
        ({"step_kl": math.nan}, (), "--learning_rate"),
        ({"step_kl": math.inf}, (), "--learning_rate"),
        ({"contrast": math.nan}, ("nan", "0.400"), "--anchor_kl_coef"),
    ],
)
def test_the_rule_names_what_was_destroyed_and_the_flag_to_turn(
    changes: dict[str, float], metrics: tuple[str, ...], flag: str
) -> None:
    said = RULE.reason(**HEALTHY | changes)
    assert said is not None and flag in said and all(figure in said for figure in metrics)


def test_the_rule_has_the_bounds_of_the_settings_and_the_contrast_of_the_base() -> None:
    config = RollbackConfig(max_retain_drop=0.1, max_retain_kl=0.2, max_step_kl=0.5)
    assert RollbackRule.of(config, 0.3) == RollbackRule(0.3, max_retain_drop=0.1, max_kl=0.2, max_step_kl=0.5)


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.2, 8.0), (0.13, 4.0), (0.1, 4.0), (0.07, 4.0), (0.05, 2.0), (math.nan, 4.0)]
)
def test_the_coefficient_follows_the_kl_to_its_target(kl: float, expected: float) -> None:
    assert adapt_coefficient(4.0, kl, target=0.1) == expected
