"""`python -m evaluation.probes` on a tiny pipeline: what it writes, that it goes on where it was, and what
it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from common.errors import friendly_errors
from evaluation.probes.__main__ import circumstances_of, main, parse_config


@pytest.fixture
def line(adapter_dir: Path, tiny_pipeline_dir: Path, tiny_judge_dir: Path) -> list[str]:
    base = [
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--judge_name_or_path",
        str(tiny_judge_dir),
    ]
    return [
        "--adapter",
        str(adapter_dir),
        *base,
        "--num_inference_steps",
        "2",
        "--num_images",
        "2",
        "--num_concept_images",
        "2",
    ]


def test_probes_are_kept_and_merged(
    line: list[str], adapter_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter_dir / "results.json").write_text('{"concept": ["Van Gogh style"], "adapter": {"UA": 90.0}}')
    main(parse_config([*line, "--probes", "removal", "--merge_with", str(adapter_dir)]))
    directory = adapter_dir / "probes"
    report = json.loads((directory / "probes.json").read_text())
    assert list(report["probes"]) == ["plain", "removal"]
    rows = {row["name"]: row for probe in report["probes"].values() for row in probe["rows"]}
    assert rows["unloaded"]["adapter"] == rows["plain prompts"]["base"] == rows["unloaded"]["base"]
    assert rows["fused into the weights"]["adapter"] == rows["plain prompts"]["adapter"]
    assert "merged with another adapter" in rows and report["merged_with"] == "adapter"
    results = json.loads((adapter_dir / "results.json").read_text())
    assert results["adapter"] == {"UA": 90.0} and results["probes"] == report
    with Image.open(directory / "probe-removal-1.png") as picture:
        assert picture.height == 2 * 100 + 4
    assert "fused into the weights" in capsys.readouterr().out

    # What is there is not run again: a probe that was marked keeps its mark, and other budgets concern their
    # own probe alone.
    path = directory / "probe-removal.json"
    marked = json.loads(path.read_text())
    marked["rows"][0]["name"] = "marked"
    path.write_text(json.dumps(marked))
    main(
        parse_config([*line, "--probes", "removal", "--merge_with", str(adapter_dir), "--attack_steps", "7"])
    )
    assert (
        json.loads((directory / "probes.json").read_text())["probes"]["removal"]["rows"][0]["name"]
        == "marked"
    )
    with pytest.raises(ValueError, match="seed differs"):
        main(parse_config([*line, "--probes", "removal", "--merge_with", str(adapter_dir), "--seed", "1"]))
    main(parse_config([*line, "--probes", "removal", "--seed", "1", "--overwrite_output_dir"]))
    report = json.loads((directory / "probes.json").read_text())
    assert report["probes"]["removal"]["rows"][0]["name"] == "unloaded" and report["settings"]["seed"] == 1


def test_without_the_base_the_adapters_side_is_the_same(line: list[str], tmp_path: Path) -> None:
    few = [
        "--inversion_steps",
        "2",
        "--attack_steps",
        "2",
        "--attack_prompts",
        "1",
        "--relearning_steps",
        "2",
        "--train_batch_size",
        "2",
        "--completion_shares",
        "0.5",
        "--image_to_image_strengths",
        "0.5",
    ]
    probes = [
        "paraphrase",
        "noise",
        "completion",
        "image_to_image",
        "inpainting",
        "inversion",
        "attack",
        "relearning",
    ]
    for name, more in {"both": [], "one": ["--without_base"]}.items():
        main(parse_config([*line, *few, *more, "--probes", *probes, "--output_dir", str(tmp_path / name)]))
    both, one = (json.loads((tmp_path / name / "probes.json").read_text()) for name in ("both", "one"))
    for probe in ["plain", *probes]:
        for row, alone in zip(both["probes"][probe]["rows"], one["probes"][probe]["rows"], strict=True):
            assert row["base"] is not None and alone["base"] is None
            assert [row[key] for key in ("name", "adapter", "prompts", "facts")] == [
                alone[key] for key in ("name", "adapter", "prompts", "facts")
            ]
    with Image.open(tmp_path / "one" / "probe-inversion-1.png") as picture:
        assert picture.height == 100 + 4


def test_settings_of_one_probe_are_circumstances_of_no_other() -> None:
    config = parse_config(["--adapter", "x", "--noise_etas", "2", "--image_to_image_strengths", "0.9"])
    said = {"without_base": False, "merged_with": None, "settings": config.budgets.as_json()}
    own = {
        "noise": {"noise_etas"},
        "completion": {"completion_shares"},
        "image_to_image": {"image_to_image_strengths"},
        "inpainting": {"inpainting_parts"},
    }
    common = circumstances_of("plain", said).keys()
    assert not common & set().union(*own.values())
    for probe, settings in own.items():
        assert circumstances_of(probe, said).keys() - common == settings


def test_images_of_the_users(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.effect_noise((40, 24), 30.0 + i).save(tmp_path / "photos" / f"{i}.png")
    more = [
        "--concept_images",
        str(tmp_path / "photos"),
        "--relearning_steps",
        "2",
        "--train_batch_size",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    main(parse_config([*line, "--probes", "relearning", *more]))
    report = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert report["concept_images_from"] == "photos"
    assert [row["name"] for row in report["probes"]["relearning"]["rows"]] == [
        "fine-tuned on the concept, 2 steps",
        "fine-tuned on unrelated images, 2 steps",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--probes", "magic"], "invalid choice"),
        (["--attack_steps", "0"], "--attack_steps: must be at least 1"),
        (["--relearning_steps", "50", "0"], "must be at least 1"),
        (["--adapter", "owner/model"], "--output_dir is needed"),
        (["--noise_etas", "1.5", "0"], "--noise_etas: must be above 0"),
        (["--noise_etas", "-1"], "--noise_etas: must be above 0"),
        (["--completion_shares", "0"], "--completion_shares: must be above 0 and below 1"),
        (["--completion_shares", "1"], "--completion_shares: must be above 0 and below 1"),
        (["--image_to_image_strengths", "1.1"], "--image_to_image_strengths: must be above 0 and at most 1"),
        (["--image_to_image_strengths", "0"], "--image_to_image_strengths: must be above 0 and at most 1"),
        (["--inpainting_parts", "top"], "invalid choice"),
        (["--probes", "completion"], "--completion_shares 0.1 of 2 steps leaves no step to the base"),
        (["--probes", "image_to_image"], "--image_to_image_strengths 0.3 of 2 steps is less than a step"),
    ],
)
def test_what_cannot_be_run(
    given: list[str], message: str, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, friendly_errors():
        main(parse_config([*line, *given]))
    assert caught.value.code == 2 and message in capsys.readouterr().err
