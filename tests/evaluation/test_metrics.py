"""UA, IRA, CRA on tables small enough to count by hand."""

from __future__ import annotations

import pytest

from evaluation.metrics import class_accuracy, summarize, t_quantile, unlearning_metrics

# Two styles x two objects: Van Gogh (to forget) and Mosaic, cat and car.
PROMPTED = {"style": ["Van Gogh", "Van Gogh", "Mosaic", "Mosaic"], "object": ["cat", "car", "cat", "car"]}
STYLE_TARGET = {"style": {"Van Gogh"}}


def judged(style: str, obj: str) -> dict[str, list[str]]:
    """Verdicts in letters: v(an gogh) m(osaic), c(at) a (car)."""
    names = {"v": "Van Gogh", "m": "Mosaic", "c": "cat", "a": "car"}
    return {"style": [names[letter] for letter in style], "object": [names[letter] for letter in obj]}


@pytest.mark.parametrize(
    ("style", "obj", "expected"),
    [
        ("vvmm", "caca", {"UA": 0, "IRA": 100, "CRA": 100, "CRA_retained": 100, "CRA_forgotten": 100}),  # nothing erased
        ("mmmm", "caca", {"UA": 100, "IRA": 100, "CRA": 100, "CRA_retained": 100, "CRA_forgotten": 100}),  # erased, nothing else touched
        ("mvmm", "aaca", {"UA": 50, "IRA": 100, "CRA": 75, "CRA_retained": 100, "CRA_forgotten": 50}),  # an erased cat became a car
        ("mmvm", "ccca", {"UA": 100, "IRA": 50, "CRA": 75, "CRA_retained": 100, "CRA_forgotten": 50}),
        ("mmvv", "acac", {"UA": 100, "IRA": 0, "CRA": 0, "CRA_retained": 0, "CRA_forgotten": 0}),  # forgetting by destruction
    ],
)
def test_style_target(style: str, obj: str, expected: dict[str, float]) -> None:
    assert unlearning_metrics(PROMPTED, judged(style, obj), STYLE_TARGET) == pytest.approx(expected)


def test_object_target_swaps_the_domains() -> None:
    figures = unlearning_metrics(PROMPTED, judged("vvvm", "aaaa"), {"object": {"cat"}})
    assert figures == pytest.approx({"UA": 100, "IRA": 100, "CRA": 75, "CRA_retained": 100, "CRA_forgotten": 50})


def test_one_domain_has_no_cross_domain_figure() -> None:
    prompted = {"object": ["cat", "car", "dog"]}
    figures = unlearning_metrics(prompted, {"object": ["dog", "car", "cat"]}, {"object": {"cat"}})
    assert figures == {"UA": 100, "IRA": 50, "CRA": None, "CRA_retained": None, "CRA_forgotten": None}


def test_several_targets_of_one_domain() -> None:
    prompted = {"object": ["cat", "car", "dog", "fox"]}
    figures = unlearning_metrics(prompted, {"object": ["cat", "cat", "dog", "car"]}, {"object": {"cat", "car"}})
    assert (figures["UA"], figures["IRA"]) == (50, 50)


def test_targets_in_two_domains() -> None:
    targets = {"style": {"Van Gogh"}, "object": {"cat"}}
    # Both erased everywhere (a cat became a car), the rest as it was.
    figures = unlearning_metrics(PROMPTED, judged("mmmm", "aaaa"), targets)
    assert figures == pytest.approx({"UA": 100, "IRA": 100, "CRA": 100, "CRA_retained": 100, "CRA_forgotten": 100})


def test_every_class_a_target_leaves_nothing_to_retain() -> None:
    figures = unlearning_metrics({"object": ["cat"]}, {"object": ["car"]}, {"object": {"cat"}})
    assert (figures["UA"], figures["IRA"]) == (100, None)


@pytest.mark.parametrize(
    ("prompted", "judged", "targets", "message"),
    [
        ({"object": []}, {"object": []}, {"object": {"cat"}}, "no images"),
        ({"object": ["car"]}, {"object": ["car"]}, {"object": {"cat"}}, "names a target class"),
        ({"object": ["car"]}, {"object": ["car"]}, {}, "no target"),
        ({"object": ["car"]}, {"object": ["car"]}, {"style": {"Mosaic"}}, "not judged"),
        ({"object": ["car", "cat"]}, {"object": ["car"]}, {"object": {"cat"}}, "differ in number"),
    ],
)
def test_errors(prompted: dict, judged: dict, targets: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unlearning_metrics(prompted, judged, targets)


def test_class_accuracy() -> None:
    assert class_accuracy(PROMPTED, judged("vmmm", "caca")) == {
        "style": {"Van Gogh": 50, "Mosaic": 100},
        "object": {"cat": 100, "car": 100},
    }


def test_summary_over_seeds() -> None:
    # Mean 95, standard deviation 5, t(2) = 4.3027: half-width 4.3027 * 5 / sqrt(3).
    summary = summarize([{"UA": 90, "CRA": None}, {"UA": 95, "CRA": None}, {"UA": 100, "CRA": None}])
    assert summary["UA"] == pytest.approx({"mean": 95, "ci95": 12.4207}, abs=1e-3)
    assert summary["CRA"] == {"mean": None, "ci95": None}
    assert summarize([{"UA": 90.0}])["UA"] == {"mean": 90, "ci95": None}
    with pytest.raises(ValueError, match="no seeds"):
        summarize([])


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (20, 2.0860), (100, 1.9840)])
def test_t_quantile(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=1e-3)
