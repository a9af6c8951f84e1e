"""The same metrics whether an evaluation runs at once, is interrupted anywhere, loses images, or is shared
by processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

import evaluation.observation as observation
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from evaluation.measures import Measures, judge_features
from evaluation.observation import Store
from evaluation.protocol import evaluate, list_jobs, table
from evaluation.shards import Side
from hub.adapter import load_adapter
from pipelines.base import load_pipeline

SEEDS, SCALES, SHARD = [0, 1, 2], [0.5, 1.0], 4


@pytest.fixture
def pipe(tiny_pipeline_dir: Path, adapter_dir: Path) -> StableDiffusionPipeline:
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, adapter_dir)
    return pipe


@pytest.fixture
def run(
    pipe: StableDiffusionPipeline, tiny_judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """12 images a side in three shards; with a directory they are kept in it. Returned is what does not
    depend on that."""
    monkeypatch.setattr("evaluation.observation.SHARD_SIZE", SHARD)
    monkeypatch.setattr("evaluation.shards.SHARD_SIZE", SHARD)
    measures = Measures(judge_features(tiny_judge, "tiny"))

    def make(directory: Path | None = None, **more: Any) -> dict[str, Any] | None:
        store = directory and Store(
            Side(directory / "base", {}),
            {scale: Side(directory / str(scale), {"scale": scale}) for scale in SCALES},
        )
        given = {
            "num_inference_steps": 2,
            "batch_size": SHARD,
            "progress": False,
            "scales": SCALES,
            "measures": measures,
            "store": store,
            **more,
        }
        found = evaluate(pipe, JudgeExamination(tiny_judge, ["Van Gogh"], "tiny"), SEEDS, **given)
        return found and {
            name: value
            for name, value in found.results.items()
            if name not in ("evaluation_seconds", "shown")
        }

    return make


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call has drawn."""
    counts: list[int] = []
    real = observation.draw

    def counted(pipe: StableDiffusionPipeline, jobs: list[tuple[str, int]], *more: Any) -> list[Any]:
        counts.append(len(jobs))
        return real(pipe, jobs, *more)

    monkeypatch.setattr("evaluation.observation.draw", counted)
    return counts


def test_files_change_nothing_and_are_used_again(
    run: Callable[..., Any], draws: list[int], tmp_path: Path
) -> None:
    at_once = run()
    assert sum(draws) == 36 and at_once["scales"][0]["scale"] == 0.5
    assert run(tmp_path) == at_once and sum(draws) == 72
    assert run(tmp_path) == at_once and sum(draws) == 72


def test_interrupted_anywhere_it_goes_on_to_the_same_results(
    run: Callable[..., Any], draws: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at each of its writes in turn: every time it gets further, and no shard that was complete is
    drawn again."""
    expected, kills = run(), 0
    real = os.replace
    draws.clear()
    while True:
        left = [7 + kills]

        def failing(aside: Path, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(aside, path)

        try:
            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", failing)
                found = run(tmp_path)
            break
        except KeyboardInterrupt:
            kills += 1
    assert found == expected and kills >= 5
    assert sum(draws) <= 36 + kills * SHARD


def test_lost_and_damaged_images_are_drawn_again_to_the_same_results(
    run: Callable[..., Any], draws: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(tmp_path)
    draws.clear()
    (tmp_path / "base" / "00001-seed0.png").write_bytes(b"no image")
    (tmp_path / "1.0" / "00002-seed2.png").unlink()
    assert run(tmp_path) == expected
    assert sum(draws) == 2 * SHARD
    assert re.findall(r"(?:base|1\.0)/\d+-seed\d\.png", caplog.text) == [
        "base/00001-seed0.png",
        "1.0/00002-seed2.png",
    ]


def test_another_judge_looks_at_the_same_images(
    run: Callable[..., Any], draws: list[int], tmp_path: Path
) -> None:
    run(tmp_path)
    draws.clear()
    plain = run(tmp_path, measures=None)
    assert "measures" not in plain["adapter"] and not draws


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
def test_two_processes_find_what_one_does(
    kept: bool, run: Callable[..., Any], draws: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its turn here, on a disk of its own: the second looks at shards 1 and 3 of four, which hold
    a picture that is shown."""
    monkeypatch.setattr("evaluation.observation.SHARD_SIZE", 3)
    expected = run(batch_size=3)

    def both() -> Any:
        draws.clear()
        second: list[Any] = []
        assert (
            run(
                tmp_path / "second" if kept else None,
                batch_size=3,
                processes=(1, 2),
                gather=lambda mine: second.extend(mine) or mine,
            )
            is None
        )
        assert draws == [3] * len(draws) and sum(draws) in (0, 18)
        return run(
            tmp_path / "first" if kept else None,
            batch_size=3,
            processes=(0, 2),
            gather=lambda mine: [*mine, *second],
        )

    assert both() == expected and sum(draws) == 36
    assert both() == expected and sum(draws) == (0 if kept else 36)


def test_seeds_of_each_prompt(tiny_judge: Judge) -> None:
    examination = JudgeExamination(tiny_judge, ["Van Gogh"], "tiny")  # two forget prompts of four
    assert list_jobs(examination, [5, 3]) == [(0, 5), (1, 5), (2, 5), (3, 5), (0, 3), (1, 3), (2, 3), (3, 3)]
    jobs = list_jobs(examination)
    assert (
        jobs[:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]
        and len(jobs) == 2 * 12 + 2 * 3
        and jobs[-1] == (1, 11)
    )
    protocol = examination.protocol
    examination.offset_seeds(0)
    assert examination.protocol == protocol and list_jobs(examination) == jobs
    examination.offset_seeds(100)
    assert examination.protocol == f"{protocol}, changed: 100 added to the seeds"
    assert list_jobs(examination) == [(i, seed + 100) for i, seed in jobs]
    assert list_jobs(examination, [5, 3])[::4] == [(0, 105), (0, 103)]


def test_the_table_names_every_weight_and_shows_intervals(run: Callable[..., Any]) -> None:
    results = run()
    text = table(results)
    low, high = results["adapter"]["ci95"]["UA"]
    assert "weight 0.5" in text and f"{results['adapter']['UA']:.2f} [{low:.1f}, {high:.1f}]" in text
    assert re.search(r"^judge: .*\b12\b.*\b6\b.*\b95 %", text, re.MULTILINE) and "pixel_drift" in text
