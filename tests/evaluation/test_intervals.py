"""Intervals hold what they should as often as they should, and never claim certainty."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluation.intervals import bootstrap, proportion_interval, t_interval, wilson


@pytest.mark.parametrize(
    ("prompts", "images", "share", "alike"),
    [
        (1, 24, 0.95, None),  # one prompt, near the edge: the bootstrap alone covers about 70 %
        (8, 3, 0.9, None),
        (8, 3, 0.5, 2.0),  # prompts that differ much: images of one are alike
        (40, 3, 0.97, 5.0),
    ],
)
def test_coverage(prompts: int, images: int, share: float, alike: float | None) -> None:
    """In 200 simulated evaluations the true share lies within at least 92 % of the intervals (95 % less
    two standard errors)."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        of_prompts = (
            np.full(prompts, share)
            if alike is None
            else generator.beta(share * alike, (1 - share) * alike, prompts)
        )
        scores = (generator.random((prompts, images)) < of_prompts[:, None]).astype(float)
        low, high = proportion_interval(scores.tolist(), resamples=300)
        assert 0 <= low <= 100 * scores.mean() <= high <= 100 and low < high
        held += low <= 100 * share <= high
    assert held >= 184


def test_what_always_happened_is_not_certain() -> None:
    assert bootstrap([[1.0] * 3] * 8) == (1.0, 1.0)  # which is why it does not stand alone
    low, high = proportion_interval([[1.0] * 3] * 8)
    assert high == 100 and low == pytest.approx(100 * 24 / (24 + 1.959964**2))
    low, high = proportion_interval([[0.0] * 24])
    assert low == 0 and high == pytest.approx(100 * (1 - 24 / (24 + 1.959964**2)))


def test_one_prompt_and_three_images_say_little_but_nothing_absurd() -> None:
    low, high = proportion_interval([[1.0, 1.0, 0.0]])
    assert 0 <= low < 25 and 90 < high <= 100


def test_images_of_one_prompt_are_no_independent_sample() -> None:
    """Ten images each of five prompts, of which each is always or never right: as uncertain as five
    images."""
    low, high = bootstrap([[1.0] * 10, [0.0] * 10, [1.0] * 10, [0.0] * 10, [1.0] * 10])
    assert high - low >= 0.6
    mixed = bootstrap([[1.0, 0.0] * 5] * 5)
    assert mixed[1] - mixed[0] < 0.4


def test_a_bootstrap_is_the_same_every_time_and_weighs_prompts() -> None:
    scores = np.random.default_rng(0).random((20, 3)).tolist()
    assert bootstrap(scores) == bootstrap(scores) != bootstrap(scores, seed=1)
    heavy_ones = [9.0] * 10 + [1.0] * 10
    low, high = bootstrap([[1.0]] * 10 + [[0.0]] * 10, heavy_ones)
    assert low > 0.6 and high < 1
    assert bootstrap([[2.0], [2.0, 2.0]]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no prompts"):
        bootstrap([])


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.5, 10, (0.2366, 0.7634)), (0.0, 10, (0.0, 0.2775)), (0.95, 100, (0.8882, 0.9785))],
)
def test_wilson(share: float, count: int, expected: tuple[float, float]) -> None:
    assert wilson(share, count) == pytest.approx(expected, abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (7, 24), (24, 24), (999, 1000)])
def test_wilson_is_scipys_where_that_has_one(successes: int, count: int) -> None:
    expected = binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson(successes / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_t_interval() -> None:
    assert t_interval([90, 95, 100]) == pytest.approx((82.579, 107.421), abs=1e-3)
    assert t_interval([90, 95, 100], (0, 100))[1] == 100
    assert t_interval([90]) is None and t_interval([90, 90, 90]) == (90, 90)


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (20, 2.0860)])
def test_t_interval_is_as_wide_as_the_tables_say(degrees: int, expected: float) -> None:
    values = np.random.default_rng(0).random(degrees + 1)
    low, high = t_interval(values.tolist())
    assert (high - low) / 2 == pytest.approx(expected * values.std(ddof=1) / len(values) ** 0.5, rel=1e-4)
