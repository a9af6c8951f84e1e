"""UA, IRA, CRA on tables small enough to count by hand."""

from __future__ import annotations

import pytest

from evaluation.metrics import METRICS, class_accuracy, grid, summarize, tabulate

# Two styles x two objects: Van Gogh (to forget) and Mosaic, cat and car.
DOMAINS = {"style": ["Van Gogh", "Mosaic"], "object": ["cat", "car"]}
STYLE_TARGET = {"style": {"Van Gogh"}}
WORDING = "{style} {object}"


def judged(style: str, obj: str) -> list[dict[str, str]]:
    """Verdicts in letters: v(an gogh) m(osaic), c(at) a (car)."""
    names = {"v": "Van Gogh", "m": "Mosaic", "c": "cat", "a": "car"}
    return [{"style": names[s], "object": names[o]} for s, o in zip(style, obj, strict=True)]


def metrics(
    domains: dict,
    targets: dict,
    verdicts: list[dict[str, str]],
    ids: list[int] | None = None,
    neighbours: dict | None = None,
) -> dict:
    scores = tabulate(
        grid(domains, WORDING if len(domains) > 1 else "{object}", targets, neighbours),
        verdicts,
        ids or list(range(len(verdicts))),
    )
    return {name: scores[name].percent() for name in METRICS}


def table(
    ua: float,
    ira: float | None,
    cra: float | None,
    retained: float | None,
    forgotten: float | None,
    nra: float | None = None,
) -> dict:
    return pytest.approx(
        {"UA": ua, "IRA": ira, "CRA": cra, "CRA_retained": retained, "CRA_forgotten": forgotten, "NRA": nra}
    )


@pytest.mark.parametrize(
    ("style", "obj", "expected"),
    [
        ("vvmm", "caca", (0, 100, 100, 100, 100)),  # nothing erased
        ("mmmm", "caca", (100, 100, 100, 100, 100)),  # erased, nothing else touched
        ("mvmm", "aaca", (50, 100, 75, 100, 50)),  # an erased cat became a car
        ("mmvm", "ccca", (100, 50, 75, 100, 50)),
        ("mmvv", "acac", (100, 0, 0, 0, 0)),  # forgetting by destruction
    ],
)
def test_style_target(style: str, obj: str, expected: tuple[float, ...]) -> None:
    assert metrics(DOMAINS, STYLE_TARGET, judged(style, obj)) == table(*expected)


def test_object_target_swaps_the_domains() -> None:
    assert metrics(DOMAINS, {"object": {"cat"}}, judged("vvvm", "aaaa")) == table(100, 100, 75, 100, 50)


def one_domain(*names: str) -> list[dict[str, str]]:
    return [{"object": name} for name in names]


def test_one_domain_has_no_cross_domain_figure() -> None:
    found = metrics({"object": ["cat", "car", "dog"]}, {"object": {"cat"}}, one_domain("dog", "car", "cat"))
    assert found == table(100, 50, None, None, None)


def test_several_targets_of_one_domain() -> None:
    found = metrics(
        {"object": ["cat", "car", "dog", "fox"]},
        {"object": {"cat", "car"}},
        one_domain("cat", "cat", "dog", "car"),
    )
    assert (found["UA"], found["IRA"]) == (50, 50)


def test_targets_in_two_domains() -> None:
    targets = {"style": {"Van Gogh"}, "object": {"cat"}}
    # Both erased everywhere (a cat became a car), the rest as it was.
    assert metrics(DOMAINS, targets, judged("mmmm", "aaaa")) == table(100, 100, 100, 100, 100)
    # The prompt of both targets is asked twice, and half forgotten; of "car", which only the style head may
    # judge, the same.
    assert metrics(DOMAINS, targets, judged("mvmm", "caca"))["UA"] == pytest.approx(100 * (1 + 0 + 0 + 0) / 4)


def test_neighbours_stand_apart_and_count_among_the_others_too() -> None:
    domains, targets = {"object": ["cat", "lynx", "car"]}, {"object": {"cat"}}
    assert metrics(
        domains, targets, one_domain("car", "car", "car"), neighbours={"object": {"lynx"}}
    ) == table(100, 50, None, None, None, 0)


def test_every_prompt_weighs_the_same_however_many_images_it_has() -> None:
    domains, targets = {"object": ["cat", "car", "dog"]}, {"object": {"cat"}}
    found = metrics(
        domains, targets, one_domain("cat", "car", "car", "car", "car", "cat"), [0, 1, 1, 1, 1, 2]
    )
    assert (found["UA"], found["IRA"]) == (0, 50)


def test_every_class_a_target_leaves_nothing_to_retain() -> None:
    found = metrics({"object": ["cat"]}, {"object": {"cat"}}, one_domain("car"))
    assert (found["UA"], found["IRA"]) == (100, None)


@pytest.mark.parametrize(
    ("domains", "targets", "verdicts", "ids", "message"),
    [
        (["car", "cat"], {"object": {"cat"}}, [], [], "no images"),
        (["car"], {"object": {"cat"}}, ["car"], [0], "names a target class"),
        (["car"], {}, ["car"], [0], "no target"),
        (["car"], {"style": {"Mosaic"}}, ["car"], [0], "not judged"),
        (["car", "cat"], {"object": {"cat"}}, ["car"], [0, 1], "differ in number"),
    ],
)
def test_errors(domains: list[str], targets: dict, verdicts: list[str], ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tabulate(grid({"object": domains}, "{object}", targets), one_domain(*verdicts), ids)


def test_class_accuracy() -> None:
    cells = grid(DOMAINS, WORDING, STYLE_TARGET)
    assert class_accuracy(cells, judged("vmmm", "caca"), [0, 1, 2, 3]) == {
        "style": {"Van Gogh": 50, "Mosaic": 100},
        "object": {"cat": 100, "car": 100},
    }


def test_a_figures_interval_holds_it_and_stays_within_its_bounds() -> None:
    cells = grid(DOMAINS, WORDING, STYLE_TARGET)
    scores = tabulate(cells, judged("mvmm" * 6, "aaca" * 6), [0, 1, 2, 3] * 6)
    for name in ("UA", "IRA", "CRA"):
        low, high = scores[name].interval()
        assert 0 <= low <= scores[name].percent() <= high <= 100 and high - low > 5
    assert scores["IRA"].images == 12 and scores["CRA"].images == 24
    assert scores["NRA"].interval() is None


def test_summary_over_runs() -> None:
    # Mean 95, standard deviation 5, t(2) = 4.3027: 95 -+ 4.3027 * 5 / sqrt(3) = 95 -+ 12.42.
    runs = [{"UA": 90, "CRA": None}, {"UA": 95, "CRA": None}, {"UA": 100, "CRA": None}]
    assert summarize(runs)["UA"] == {"mean": 95, "ci95": pytest.approx([82.579, 107.421], abs=1e-3)}
    assert summarize(runs, {"UA": None})["UA"]["ci95"] == pytest.approx([82.579, 100], abs=1e-3)
    assert summarize(runs)["CRA"] == {"mean": None, "ci95": None}
    assert summarize([{"UA": 90.0}])["UA"] == {"mean": 90, "ci95": None}
    # Runs that agree leave their images to speak: Wilson, 72 of 72.
    assert summarize([{"UA": 100.0}] * 3, {"UA": 72})["UA"]["ci95"] == pytest.approx(
        [100 * 72 / (72 + 1.959964**2), 100]
    )
    with pytest.raises(ValueError, match="no runs"):
        summarize([])
