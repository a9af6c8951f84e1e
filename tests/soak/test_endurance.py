from __future__ import annotations

import pytest
from endurance import LIMITS, Sample, beyond, growth


def run(**by: float) -> list[Sample]:
    """A run in which something grows by so much an iteration, after a beginning in which everything does."""
    held = {"memory": 1e6, "files": 8, "threads": 3, "checkpoints": 2, "disk": 1e5}
    return [
        Sample(i, **{name: value + min(i, 100) + by.get(name, 0) * i for name, value in held.items()})
        for i in range(0, 1000, 5)
    ]


def test_what_is_made_once_is_no_growth() -> None:
    assert beyond(growth(run())) == [] and growth(run()).keys() == LIMITS.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_what_grows_beyond_its_limit_is_named(name: str) -> None:
    slopes = growth(run(**{name: LIMITS[name] + 0.1}))
    assert beyond(slopes) == [name] and slopes[name] == pytest.approx(LIMITS[name] + 0.1)
    assert beyond(growth(run(**{name: LIMITS[name] - 0.1}))) == []


def test_memory_that_comes_and_goes_is_no_growth() -> None:
    samples = [Sample(i, 1e6 + 5e4 * (i % 7), 8, 3, 2, 0) for i in range(1000)]
    assert abs(growth(samples)["memory"]) < 1
