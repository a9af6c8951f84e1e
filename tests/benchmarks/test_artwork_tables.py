"""Tables of the comparison on artwork, from results as evaluations write them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.artwork.tables import category_table, drawn_less, metrics
from benchmarks.compare.tables import table


def side(**found: Any) -> dict[str, Any]:
    usual = dict.fromkeys(("IRA_told", "IRA_untold", "CRA", "other_of_two"), 100.0)
    images = {"UA": 24, "UA_categories": 400}
    return usual | {"images": images, "per_class": {"style": {}, "object": {}}} | found


def run(method: str = "ours", **adapter: Any) -> dict[str, Any]:
    base = side(
        UA=0.0,
        UA_synonyms=10.0,
        UA_pairs=20.0,
        UA_categories=80.0,
        per_class={"object": {}, "an animal": {"cat": 20.0, "dog": 30.0, "fox": 50.0}},
    )
    return {
        "method": method,
        "concept": "cat",
        "targets": {"object": ["cat"]},
        "base": base,
        "adapter": base | side(**adapter),
        "training": {"seconds": 10.0},
        "adapter_mb": 0.1,
    }


GONE = {"an animal": {"dog": 45.0, "fox": 55.0}}


def test_category_prompts_count_what_they_drew_before() -> None:
    found = metrics(run(UA=100.0, UA_synonyms=90.0, UA_pairs=80.0, UA_categories=95.0), "adapter")
    assert found["categories"] == pytest.approx(75)  # 5 percent are left of 20
    assert found["forgotten"] == pytest.approx((100 + 90 + 80 + 75) / 4) and found["kept"] == 100
    before = metrics(run(), "base")
    assert before["categories"] == 0 and before["forgotten"] == pytest.approx(7.5)
    more = run(UA=100.0, UA_synonyms=90.0, UA_pairs=80.0, UA_categories=70.0)
    assert metrics(more, "adapter")["categories"] == 0


def test_what_was_not_judged_counts_nowhere() -> None:
    alone = run(UA=100.0, per_class={})
    for of in (alone["base"], alone["adapter"]):
        for name in ("UA_synonyms", "UA_categories", "UA_pairs", "IRA_untold"):
            of[name] = None
    found = metrics(alone, "adapter")
    assert found["forgotten"] == 100 and "categories" not in found and "IRA_untold" not in found


def test_a_member_is_drawn_less_if_chance_does_not_explain_it() -> None:
    assert drawn_less(run(UA_categories=100.0, per_class=GONE)) == []
    fewer = {"an animal": {"dog": 26.0, "fox": 35.0}}  # of 400: 4 points in 30 are chance, 15 in 50 are not
    assert drawn_less(run(UA_categories=100.0, per_class=fewer)) == ["fox"]
    assert drawn_less(run(UA_categories=100.0, per_class={})) == ["dog", "fox"]


def test_the_tables_name_base_methods_and_the_pipeline_that_never_saw_it() -> None:
    erased = {"UA": 100.0, "UA_synonyms": 100.0, "UA_pairs": 100.0, "UA_categories": 100.0, "per_class": GONE}
    never = run("never", **erased) | {"training": {}, "adapter_mb": None}
    runs = [run(**erased), run("uce", UA=50.0, UA_categories=90.0), never]
    lines = table(runs, metrics).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| none (the base)",
        "| ours",
        "| UCE",
        "| never saw the concept",
    ]
    assert "object forgotten" in lines[0] and lines[3].count("**") >= 8
    assert category_table(runs).splitlines()[2:] == [
        "| none (the base) | 20.0 |",
        "| ours | 0.0 (0 less) |",
        "| UCE | 10.0 (2 less) |",
        "| never saw the concept | 0.0 (0 less) |",
    ]
