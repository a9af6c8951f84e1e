"""The card says what results.json says, shows no local path, and takes hostile text for text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image

from hub.adapter import save_adapter
from hub.card import escape, hub_id, model_card, save_model_card

HOSTILE = "<script>alert(1)</script> | **x** `y`\n# z ``` [a](http://b) {{ c }}"


@pytest.fixture
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("output")
    Image.new("RGB", (8, 8)).save(directory / "before_after.png")
    return directory


def results(**changes: Any) -> dict[str, Any]:
    return {
        "concept": ["Van Gogh style"],
        "base_model_name_or_path": "bundled canvas",
        "revision": None,
        "base": {"UA": 0.52, "IRA": 99.4, "CRA": 98.96, "ci95": {"UA": 0.1, "IRA": 0.2, "CRA": 0.3}},
        "adapter": {"UA": 97.92, "IRA": 98.81, "CRA": 97.4, "ci95": {"UA": 1.5, "IRA": 0.2, "CRA": 0.3}},
        "seeds": [0, 1, 2],
        "judge": "bundled canvas judge",
        "settings": {"learning_rate": 0.003, "rank": 8, "output_dir": "/home/someone/run", "hub_token": "secret", "prompts": None},
        "training": {"iterations": 20, "images": 1280, "unet_samples": 40960, "seconds": 301.5, "stopped_by": "target reached"},
        "versions": {"torch": "2.15.0"},
        "reward_model": "local-dir:/srv/models/reward",
        "critic_model": None,
    } | changes


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1))


def test_metadata(output_dir: Path) -> None:
    data = front_matter(str(model_card(results(), output_dir)))
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert data["license"] == "apache-2.0"
    assert {"lora", "diffusers-training", "concept-erasure", "unlearning"} <= set(data["tags"])
    assert data["widget"] == [{"text": "Van Gogh style", "output": {"url": "before_after.png"}}]
    assert "base_model" not in data and "base_model_relation" not in data
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics} == {"ua": 97.92, "ira": 98.81, "cra": 97.4}


def test_a_base_on_the_hub_is_named(output_dir: Path) -> None:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    card = model_card(results(base_model_name_or_path=name, revision="main"), output_dir)
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == (name, "adapter", "creativeml-openrail-m")
    assert f'from_pretrained("{name}", revision="main")' in card.text


def test_body(output_dir: Path) -> None:
    text = model_card(results(), output_dir).text
    assert "| base | 0.52 ± 0.10 | 99.40 ± 0.20 | 98.96 ± 0.30 |" in text
    assert "| with this adapter | 97.92 ± 1.50 |" in text
    assert "Judge: bundled canvas judge. Mean over 3 seeds (0, 1, 2)" in text
    assert r"| --learning\_rate | 0.003 |" in text
    assert "target reached" in text
    assert "can unload an adapter" in text
    assert "not independent" not in text


def test_the_teachers_figures_are_called_so(output_dir: Path) -> None:
    judged = {"UA": 90.0, "IRA": 80.0, "CRA": None}
    card = model_card(results(base=judged, adapter=judged, judge="teacher (the reward's own CLIP; not independent)", seeds=[3]), output_dir)
    assert card.text.count("not independent") >= 2
    assert "| percent | UA | IRA |\n" in card.text
    assert "One seed (3)." in card.text
    assert all("not independent" in m["name"] for m in front_matter(str(card))["model-index"][0]["results"][0]["metrics"])


@pytest.mark.parametrize("base", ["/home/someone/models/sd", "models/sd/v1", "C:\\Users\\someone\\sd", "./sd", "~/sd", "sd"])
def test_no_local_path(base: str, output_dir: Path) -> None:
    card = str(model_card(results(base_model_name_or_path=base), output_dir))
    assert "base_model" not in front_matter(card)
    for trace in ("/home", "someone", "/srv", "Users", "secret", "hub_token", "~/", str(output_dir.parent)):
        assert trace not in card


def test_a_directory_is_no_hub_id(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_id("owner/model") == "owner/model"
    monkeypatch.chdir(output_dir)
    Path("owner/model").mkdir(parents=True)
    assert hub_id("owner/model") is None
    assert hub_id("a/b/c") is hub_id("") is hub_id("model") is None


def test_hostile_text_stays_text(output_dir: Path) -> None:
    hostile = results(concept=[HOSTILE], settings={"validation_prompt": HOSTILE}, base_model_name_or_path="/x/<b>y</b>", judge=HOSTILE)
    card = model_card(hostile, output_dir)
    assert front_matter(str(card))["widget"][0]["text"] == HOSTILE
    code = re.search(r"```python\n(.*?)\n```\n", card.text, re.DOTALL).group(1)
    compile(code, "card", "exec")
    prose = card.text.replace(code, "")
    assert "<script>" not in prose and "<b>" not in prose
    assert r"\*\*x\*\*" in prose
    assert "\n# z" not in card.text
    assert escape("a|b\n- c") == r"a\|b - c"


def test_scarce_results(tmp_path: Path) -> None:
    card = str(model_card({"concept": "cat"}, tmp_path))
    assert "# LoRA that erases: cat" in card
    assert "before_after.png" not in card
    assert front_matter(card)["library_name"] == "diffusers"
    assert front_matter(str(model_card({}, tmp_path)))["pipeline_tag"] == "text-to-image"


def test_save_replaces_an_older_card(output_dir: Path) -> None:
    (output_dir / "README.md").write_text("old")
    path = save_model_card(results(), output_dir)
    save_model_card(results(), output_dir)
    assert ModelCard.load(path).data.library_name == "diffusers"
    assert sorted(p.name for p in output_dir.iterdir()) == ["README.md", "before_after.png"]


def test_the_snippet_runs(tiny_pipeline_dir: Path, output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]))
    save_adapter(output_dir / "runs" / "demo", unet)
    monkeypatch.chdir(output_dir)
    monkeypatch.setattr("canvas.PIPELINE", tiny_pipeline_dir)
    text = model_card(results(), Path("runs/demo")).text
    code = re.search(r"```python\n(.*?)\n```\n", text, re.DOTALL).group(1)
    assert 'load_lora_weights("runs/demo")' in code
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert namespace["image"].size == (16, 16)
