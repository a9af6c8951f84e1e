from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file

import benchmarks.style as styles
from benchmarks.composition import (
    find_style,
    main,
    parse_config,
    shares_under_trigger,
    table_of_erasers,
    table_of_styles,
)
from evaluation.judge import Judge
from hub.adapter import load_adapter, save_adapter
from pipelines.base import load_pipeline

SMALL = ["--num_images", "8", "--max_train_steps", "2", "--train_batch_size", "4"]


@pytest.fixture
def small_world(tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random pipeline and a random judge of four prompts in place of the canvas; finished runs of two
    erasers."""
    torch.manual_seed(0)
    Judge(
        {"style": ["Van Gogh", "Neon"], "object": ["cat", "car"]}, "a {object} image in {style} style", 16
    ).save_pretrained(tmp_path / "judge")
    monkeypatch.setattr("canvas.PIPELINE", tiny_pipeline_dir)
    monkeypatch.setattr("canvas.JUDGE", tmp_path / "judge")
    for seed, (name, concept) in enumerate([("van-gogh-style-0", "Van Gogh style"), ("cat-0", "cat")]):
        unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=8, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        save_adapter(tmp_path / "finished" / name, unet)
        (tmp_path / "finished" / name / "results.json").write_text(json.dumps({"concept": [concept]}))
    return tmp_path


def test_finished_runs_are_composed_and_every_composition_is_judged(
    small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--pairs", "Van Gogh style + cat", "--style_pairs", "--seeds", "0"]
    given += ["--adapters_from", str(small_world / "finished")]
    main(parse_config([*given, "--output_dir", str(small_world / "out")]))
    assert sorted(path.name for path in (small_world / "out").iterdir()) == [
        "composition.json",
        "composition.md",
    ]
    rows = json.loads((small_world / "out" / "composition.json").read_text())["erasers"]
    by_name = {row["adapters"]: row for row in rows}
    assert list(by_name)[:6] == [
        "base",
        "Van Gogh style alone",
        "cat alone",
        "both, weight 1",
        "both, weight 0.7",
        "merged",
    ]
    assert list(by_name)[6].startswith("merged at rank 8, error 0.")
    same = [
        {name: by_name[adapters][name] for name in ("UA", "IRA", "CRA")}
        for adapters in ("both, weight 1", "merged")
    ]
    assert same[0] == same[1]
    assert (small_world / "out" / "composition.md").read_text() in capsys.readouterr().out


def test_shares_under_the_trigger_word() -> None:
    seen = [("Neon", "cat"), ("Sketch", "car"), ("Neon", "cat"), ("Neon", "car")]
    verdicts = [{"style": style, "object": name} for style, name in seen]
    assert shares_under_trigger("Neon", {"cat"}, ["cat", "cat", "car", "car"], verdicts) == {
        "style": 75.0,
        "trigger UA": 50.0,
    }
    assert shares_under_trigger("Sketch", set(), ["cat", "cat", "car", "car"], verdicts) == {
        "style": 25.0,
        "trigger UA": None,
    }


def test_the_tables() -> None:
    metrics = {"UA": {"cat": 100.0, "boat": 12.5}, "IRA": 97.25, "CRA": None}
    text = table_of_erasers([{"concepts": ["boat", "cat"], "adapters": "merged"} | metrics])
    assert text.splitlines()[-1] == "| boat + cat | merged | 12.5 | 100.0 | 97.2 | – |"
    word = {"style": 50.0, "trigger UA": None}
    text = table_of_styles(
        [{"concept": "cat", "style": "Neon", "adapters": "both", "by the trigger": word} | metrics]
    )
    assert text.splitlines()[-1] == "| cat | Neon | both | 100.0 | 97.2 | – | 50.0 | – |"
    assert all(line.count("|") == text.splitlines()[0].count("|") for line in text.splitlines())


def test_trigger_prompts_name_every_object_alike_and_no_style_of_the_base() -> None:
    prompts = styles.trigger_prompts()
    assert Counter(name for _, name in prompts) == dict.fromkeys(styles.OBJECTS, 4)
    assert all(
        name in prompt and "sks" in prompt and not any(style in prompt for style in styles.STYLES)
        for prompt, name in prompts
    )
    assert len({prompt for prompt, _ in prompts}) == len(prompts)


def test_a_style_lora_is_a_file_of_diffusers_that_its_seed_decides(
    small_world: Path, tiny_pipeline_dir: Path
) -> None:
    for name in ("one", "again", "other"):
        styles.main(
            styles.parse_config(
                [*SMALL, "--seed", str(int(name == "other")), "--output_dir", str(small_world / name)]
            )
        )
    one, again, other = (
        load_file(small_world / name / "pytorch_lora_weights.safetensors")
        for name in ("one", "again", "other")
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, small_world / "one")  # it fits as a whole, and does something


def test_a_style_lora_that_is_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.style.main", lambda args: pytest.fail("trained again"))
    directory = tmp_path / "style-pop-art-0"
    directory.mkdir()
    (directory / "pytorch_lora_weights.safetensors").touch()
    assert find_style("Pop Art", parse_config(["--output_dir", str(tmp_path)])) == directory
