from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.artwork.__main__ import CONCEPTS
from benchmarks.artwork.world import RECORDS, settings
from benchmarks.baselines import METHODS
from benchmarks.baselines.command import changed
from benchmarks.baselines.sweep import CANVAS, FURTHER, GRID, combinations, main, parse_config, ranked, table
from benchmarks.baselines.trial import shorten
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge


def run(concept: str, settings: list[str], *ua: float, cra: float = 100.0) -> dict[str, Any]:
    curve = [
        {"steps": 50 * (i + 1), "seconds": 10.0 * (i + 1), "UA": u, "IRA": 100.0, "CRA": cra}
        for i, u in enumerate(ua)
    ]
    return {"method": "esd", "concept": [concept], "settings": settings, "curve": curve}


def test_the_best_settings_have_the_highest_mean_and_of_equals_the_fewest_steps() -> None:
    low, high = ["learning_rate=0.001"], ["learning_rate=0.003"]
    rows = ranked(
        [
            run("cat", low, 40.0, 100.0),
            run("dog", low, 100.0, 100.0),
            run("cat", high, 100.0, 100.0),
            run("dog", high, 100.0, 100.0, cra=91.0),
        ]
    )
    assert [(row["settings"], row["steps"]) for row in rows] == [
        (low, 100),
        (high, 50),
        (high, 100),
        (low, 50),
    ]
    assert rows[0]["score"] == 100.0 and rows[-1]["UA"] == 70.0
    assert "| esd | learning_rate=0.003 | 50 | 98.5 | 100.0 | 100.0 | 95.5 | 10.0 |" in table({"esd": rows})


def test_trials_that_are_done_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GRID, "esd", {"learning_rate": [1e-3, 3e-3]})
    (tmp_path / "runs").mkdir()
    for rate in ("0.001", "0.003"):
        content = run("star", [f"learning_rate={rate}"], 1000 * float(rate))
        (tmp_path / "runs" / f"esd-star-learning-rate-{rate.replace('.', '-')}.json").write_text(
            json.dumps(content)
        )
    main(
        parse_config(["--methods", "esd", "--concepts", "star", "--jobs", "1", "--output_dir", str(tmp_path)])
    )
    assert json.loads((tmp_path / "sweep.json").read_text())["esd"][0]["settings"] == ["learning_rate=0.003"]
    assert (tmp_path / "sweep.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_what_the_sweep_tries_are_settings_and_what_is_used_is_among_them(method: str) -> None:
    grid, used = GRID[method], METHODS[method].settings()
    assert changed(used, [f"{name}={values[0]}" for name, values in grid.items()])
    assert all(getattr(used, name) in values for name, values in grid.items() if name != "steps")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_tried_on_the_artwork_is_more_and_no_trial_is_there_twice(method: str) -> None:
    canvas, artwork = combinations(method, artwork=False), combinations(method, artwork=True)
    assert len({tuple(row) for row in artwork}) == len(artwork)
    assert (len(artwork) > len(canvas)) == (method in FURTHER)
    assert all(changed(METHODS[method].settings(), row) for row in artwork)


def test_fewer_prompts_are_judged_of_what_is_kept_only() -> None:
    judge = Judge({"style": ["a", "b", "c"], "object": ["cat", "dog"]}, "a {object} in {style} style", 8)
    examination = JudgeExamination(judge, ["cat"], "judge")
    shorten(examination, 2)
    assert examination.prompts[:3] == [f"a cat in {style} style" for style in "abc"]
    assert len(examination.prompts) == 5 and all("dog" in prompt for prompt in examination.prompts[3:])


def test_the_artwork_is_swept_on_concepts_of_its_own(tmp_path: Path) -> None:
    chosen = parse_config(["--artwork", str(tmp_path)])
    assert not set(chosen.chosen_on) & set(CONCEPTS) and parse_config([]).chosen_on == CANVAS
    with pytest.raises(ValueError, match=r"holds no pipeline.*--output_dir"):
        main(chosen)


@pytest.mark.parametrize("method", METHODS)
def test_the_comparison_of_the_artwork_uses_what_its_sweep_found_best(method: str) -> None:
    runs = [json.loads(file.read_text()) for file in sorted((RECORDS / "sweep").glob(f"{method}-*.json"))]
    assert len(runs) == 2 * len(combinations(method, artwork=True))
    best = ranked(runs)[0]
    found = [text for text in best["settings"] if not text.startswith("steps=")]
    if "steps" in vars(METHODS[method].settings()):
        found.append(f"steps={best['steps']}")
    assert ["--settings", *found] == list(settings(method))
