from __future__ import annotations

import math

import pytest

from training.control import Brake, StopSignal, adapt_coefficient


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


BRAKE = Brake(least_contrast=0.4, max_retain_drop=0.2, max_kl=0.3, max_step_kl=1.0, min_contrast=0.25)
HEALTHY = {"retain_drop": 0.0, "retain_kl": 0.0, "step_kl": 0.0, "contrast": 0.4}


@pytest.mark.parametrize(
    ("changes", "reason", "flag"),
    [
        ({}, None, ""),
        ({"retain_drop": 0.19, "retain_kl": 0.29, "step_kl": 0.99, "contrast": 0.11}, None, ""),
        ({"retain_drop": -0.5, "contrast": 0.9}, None, ""),
        ({"retain_drop": 0.21}, "retain reward", "--kl_coef"),
        ({"retain_kl": 0.31}, "KL to the base", "--kl_coef"),
        ({"step_kl": 1.1}, "moved the policy", "--learning_rate"),
        ({"contrast": 0.09}, "blank", "--anchor_kl_coef"),
        ({"retain_drop": math.nan}, "retain reward", "--kl_coef"),
        ({"retain_kl": math.nan}, "KL to the base", "--kl_coef"),
        ({"retain_kl": math.inf}, "KL to the base", "--kl_coef"),
        ({"step_kl": math.nan}, "no finite gradient", "--learning_rate"),
        ({"contrast": math.nan}, "blank", "--anchor_kl_coef"),
    ],
)
def test_the_brake_names_what_was_destroyed_and_the_flag_to_turn(
    changes: dict[str, float], reason: str | None, flag: str
) -> None:
    said = BRAKE.reason(**HEALTHY | changes)
    assert said is None if reason is None else said is not None and reason in said and flag in said


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.2, 8.0), (0.13, 4.0), (0.1, 4.0), (0.07, 4.0), (0.05, 2.0), (math.nan, 4.0)]
)
def test_the_coefficient_follows_the_kl_to_its_target(kl: float, expected: float) -> None:
    assert adapt_coefficient(4.0, kl, target=0.1) == expected
