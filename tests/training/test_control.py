from __future__ import annotations

import math

import pytest

from training.control import Brake, StopSignal


def test_it_stops_after_the_target_was_held_for_the_patience() -> None:
    stop = StopSignal(target=0.95, patience=3)
    assert [stop.update(x) for x in (0.95, 1.0, 0.94, 0.96, 0.97, 0.99, 1.0)] == [False, False, False, False, False, True, True]


def test_a_figure_that_is_no_number_is_not_the_target() -> None:
    stop = StopSignal(target=0.0, patience=1)
    assert not stop.update(math.nan)
    assert stop.update(0.0)


def test_a_stop_signal_goes_on_from_where_it_was() -> None:
    assert StopSignal(target=0.9, patience=3, reached=2).update(0.9)


BRAKE = Brake(base_contrast=0.4, max_retain_drop=0.2, max_kl=0.3, min_contrast=0.25)


@pytest.mark.parametrize(
    ("retain_drop", "retain_kl", "contrast", "reason"),
    [
        (0.0, 0.0, 0.4, None),
        (0.19, 0.29, 0.11, None),
        (-0.5, 0.0, 0.9, None),
        (0.21, 0.0, 0.4, "retain reward"),
        (0.0, 0.31, 0.4, "KL"),
        (0.0, 0.0, 0.09, "blank"),
        (math.nan, 0.0, 0.4, "retain reward"),
        (0.0, math.nan, 0.4, "KL"),
        (0.0, math.inf, 0.4, "KL"),
        (0.0, 0.0, math.nan, "blank"),
    ],
)
def test_the_brake_names_what_was_destroyed(retain_drop: float, retain_kl: float, contrast: float, reason: str | None) -> None:
    said = BRAKE.reason(retain_drop, retain_kl, contrast)
    assert said is None if reason is None else said is not None and reason in said
