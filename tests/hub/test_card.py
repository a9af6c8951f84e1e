"""The card says what results.json says, shows no local path, and takes hostile text for text."""

from __future__ import annotations

import json
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

from common.markup import Markdown
from common.names import hub_id
from hub.__main__ import main, parse_config
from hub.adapter import save_adapter
from hub.card import UNLOADABLE, addressed, model_card, save_model_card
from hub.notes import BEGIN, read_notes, with_notes

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
        "base": {
            "UA": 0.52,
            "IRA": 99.4,
            "CRA": 98.96,
            "ci95": {"UA": [0.4, 0.7], "IRA": [99.2, 99.6], "CRA": [98.6, 99.2]},
        },
        "adapter": {
            "UA": 97.92,
            "IRA": 98.81,
            "CRA": 97.4,
            "ci95": {"UA": [93.5, 99.4], "IRA": [98.6, 99.0], "CRA": None},
        },
        "seeds": [0, 1, 2],
        "judge": "bundled canvas judge",
        "settings": {
            "learning_rate": 0.003,
            "rank": 8,
            "output_dir": "/home/someone/run",
            "hub_token": "secret",
            "prompts": None,
        },
        "training": {
            "iterations": 20,
            "images": 1280,
            "unet_samples": 40960,
            "seconds": 301.5,
            "stopped_by": "target reached",
        },
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
    assert metrics[0]["args"] == {"seeds": [0, 1, 2], "ci95": [93.5, 99.4]}


def test_a_base_of_sdxl_and_one_in_a_file_are_loaded_as_such(output_dir: Path) -> None:
    card = model_card(
        results(
            base_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0",
            pipeline_class="StableDiffusionXLPipeline",
        ),
        output_dir,
    )
    assert card.data.license == "openrail++" and {
        "stable-diffusion-xl",
        "stable-diffusion-xl-diffusers",
        "stable-diffusion",
    } <= set(card.data.tags)
    assert 'DiffusionPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")' in str(card)
    for cls in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        card = str(
            model_card(
                results(base_model_name_or_path="/models/my-base.safetensors", pipeline_class=cls), output_dir
            )
        )
        assert (
            f"from diffusers import {cls}\n" in card
            and f'pipe = {cls}.from_single_file("path/to/my-base.safetensors")' in card
        )


def test_a_base_on_the_hub_is_named(output_dir: Path) -> None:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    card = model_card(results(base_model_name_or_path=name, revision="main"), output_dir)
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == (
        name,
        "adapter",
        "creativeml-openrail-m",
    )
    assert f'from_pretrained("{name}", revision="main")' in card.text


def test_a_licence_that_has_no_identifier_is_named_with_its_address(output_dir: Path) -> None:
    data = model_card(results(base_model_name_or_path="stabilityai/sd-turbo"), output_dir).data
    assert (data.license, data.license_name) == (
        "other",
        "sai-nc-community",
    ) and data.license_link.startswith("https://")
    given = {"license": "other", "license_name": "mine", "license_link": "https://example.org"}
    data = model_card(results(base_model_name_or_path="owner/model", **given), output_dir).data
    assert {name: getattr(data, name) for name in given} == given
    unknown = model_card(results(base_model_name_or_path="owner/model"), output_dir)
    assert "license" not in front_matter(str(unknown))


def test_what_suffered_most_is_shown_worst_first_without_what_was_to_be_erased(output_dir: Path) -> None:
    before = {
        "style": {"Van Gogh": 99.0, "Mosaic": 98.0, "Neon": 97.0},
        "object": {f"thing {i}": 90.0 for i in range(8)},
    }
    after = {
        "style": {"Van Gogh": 0.0, "Mosaic": 90.0, "Neon": 97.5},
        "object": {f"thing {i}": 90.0 - i / 2 for i in range(8)},
    }
    sides = {"base": {"UA": 1.0, "per_class": before}, "adapter": {"UA": 99.0, "per_class": after}}
    text = model_card(results(**sides, targets={"style": ["Van Gogh"]}), output_dir).text
    row = re.compile(r"^\| (\w+) \| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
    assert row.findall(text) == [
        ("style", "Mosaic", "98.00", "90.00"),
        *(("object", f"thing {i}", "90.00", f"{90 - i / 2:.2f}") for i in (7, 6, 5, 4)),
    ]
    unaimed = model_card(results(**sides), output_dir).text
    assert not row.findall(unaimed) and unaimed.count("\n## ") == text.count("\n## ") - 1


def test_what_a_protocol_adds_is_shown_and_explained(output_dir: Path) -> None:
    before = {"UA": 1.0, "UA_categories": 80.0, "per_class": {"an animal": {"cat": 20.0, "dog": 80.0}}}
    after = {"UA": 99.0, "UA_categories": 97.5, "per_class": {"an animal": {"cat": 2.5, "dog": 60.0}}}
    text = model_card(results(base=before, adapter=after, targets={"object": ["cat"]}), output_dir).text
    assert re.search(r"\| UA_categories \|", text) and "80.00" in text and "97.50" in text
    assert "- UA_categories, UA where the prompt says a category" in text and "UA_pairs" not in text
    assert "| an animal | dog | 80.00 | 60.00 |" in text and "| an animal | cat |" not in text


def test_prompts_that_suffered_stand_in_for_classes_where_the_teacher_judged(output_dir: Path) -> None:
    metrics = {"base": {"a cat": 90.0, "a | tree": 80.0}, "adapter": {"a cat": 0.0, "a | tree": 70.0}}
    sides = {side: {"UA": 1.0, "per_class": {"prompt": of_prompts}} for side, of_prompts in metrics.items()}
    text = model_card(results(**sides, forget_prompts=["a cat"]), output_dir).text
    assert r"| prompt | a \| tree | 80.00 | 70.00 |" in text and "| a cat |" not in text


def test_where_it_comes_from(output_dir: Path) -> None:
    given = {
        "reward_model": "owner/reward",
        "reward_model_revision": "abc123",
        "critic_model": "/home/someone/critic",
        "forget_prompts": [f"prompt {i}\n# <b>{i}</b>" for i in range(5)],
        "retain_prompts": ["a tree"],
        "prompts": {"forget": 5, "retain": 59},
    }
    text = model_card(results(**given), output_dir).text
    facts = {line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines() if line.count("|") == 3}
    assert {"critic", '1: "a tree"'} <= facts
    for fact in (
        r"owner/reward\b.*\babc123",
        r'5: "prompt 0 \\# &lt;b&gt;0&lt;/b&gt;", "prompt 1.*',
        r"5\b.*\b59\b.*",
    ):
        assert len([one for one in facts if re.fullmatch(fact, one)]) == 1
    assert "prompt 3" not in text


def test_the_picture_is_shown_once_where_there_is_one(output_dir: Path, tmp_path: Path) -> None:
    text = model_card(results(), output_dir).text
    assert text.count("before_after.png") == 1 and "<Gallery" not in text
    assert "before_after.png" not in model_card(results(), tmp_path).text


def test_date_and_command_are_named_and_the_settings_folded(output_dir: Path) -> None:
    made = {"date": "2026-02-03", "command": "python -m hub merge 'a*b_c' <b>"}
    text = model_card(results(**made), output_dir).text
    assert "2026-02-03" in text and r"merge 'a\*b\_c' &lt;b&gt;</code>" in text
    folded = re.search(r"<details><summary>3 settings</summary>\n\n(.*?)\n\n</details>", text, re.DOTALL)[1]
    assert "--rank" in folded and "iterations" not in folded and text.count("--rank") == 1
    assert "<code>" not in model_card(results(), output_dir).text
    assert "<details>" not in model_card(results(settings=None), output_dir).text


def test_the_example_can_be_made_to_load_from_the_hub(output_dir: Path) -> None:
    card = str(model_card(results(), output_dir))
    assert 'pipe.load_lora_weights("someone/adapter")' in addressed(card, "someone/adapter")
    other = addressed(addressed(card, "someone/adapter"), "someone/other", "a/branch")
    assert (
        'pipe.load_lora_weights("someone/other", revision="a/branch")' in other
        and "someone/adapter" not in other
    )
    assert len(other.splitlines()) == len(card.splitlines())


def test_body(output_dir: Path) -> None:
    text = model_card(results(), output_dir).text
    assert "| base | 0.52 [0.4, 0.7] | 99.40 [99.2, 99.6] | 98.96 [98.6, 99.2] |" in text
    assert "| with this adapter | 97.92 [93.5, 99.4] | 98.81 [98.6, 99.0] | 97.40 |" in text
    assert re.search(r"\bbundled canvas judge\b.*\b0, 1, 2\b.*\b95 %", text)
    assert r"| --learning\_rate | 0.003 |" in text
    assert "target reached" in text
    assert UNLOADABLE in text
    assert "not independent" not in text


def test_the_teachers_figures_are_called_so(output_dir: Path) -> None:
    judged = {"UA": 90.0, "IRA": 80.0, "CRA": None}
    card = model_card(
        results(
            base=judged, adapter=judged, judge="teacher (the reward's own CLIP; not independent)", seeds=[3]
        ),
        output_dir,
    )
    assert card.text.count("not independent") >= 2
    assert " | UA | IRA |\n" in card.text
    assert re.search(r"teacher.*\b3\.\s", card.text) and "95 %" not in card.text
    assert all(
        "not independent" in m["name"]
        for m in front_matter(str(card))["model-index"][0]["results"][0]["metrics"]
    )


@pytest.mark.parametrize(
    "base", ["/home/someone/models/sd", "models/sd/v1", "C:\\Users\\someone\\sd", "./sd", "~/sd", "sd"]
)
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
    hostile = results(
        concept=[HOSTILE],
        settings={"validation_prompt": HOSTILE},
        base_model_name_or_path="/x/<b>y</b>",
        judge=HOSTILE,
    )
    card = model_card(hostile, output_dir)
    assert front_matter(str(card))["widget"][0]["text"] == HOSTILE
    code = re.search(r"```python\n(.*?)\n```\n", card.text, re.DOTALL).group(1)
    compile(code, "card", "exec")
    prose = card.text.replace(code, "")
    assert "<script>" not in prose and "<b>" not in prose
    assert r"\*\*x\*\*" in prose
    assert "\n# z" not in card.text
    assert Markdown.of("a|b\n- c") == r"a\|b - c"


def test_scarce_results(tmp_path: Path) -> None:
    card = str(model_card({"concept": "cat"}, tmp_path))
    assert re.search(r"^# .*\bcat$", card, re.MULTILINE)
    assert "before_after.png" not in card
    assert front_matter(card)["library_name"] == "diffusers"
    assert front_matter(str(model_card({}, tmp_path)))["pipeline_tag"] == "text-to-image"


def test_many_seeds_are_counted_and_half_widths_of_older_results_left_out(output_dir: Path) -> None:
    text = model_card(
        results(seeds=list(range(24)), adapter={"UA": 97.92, "ci95": {"UA": 1.5}}), output_dir
    ).text
    assert re.search(r"\b24\b", text) and "0, 1, 2" not in text and "| with this adapter | 97.92 |" in text


def test_save_replaces_an_older_card_but_not_what_people_wrote_into_it(output_dir: Path) -> None:
    (output_dir / "README.md").write_text("old")
    path = save_model_card(results(), output_dir)
    assert BEGIN in path.read_text() and "old" not in path.read_text().split()
    path.write_text(with_notes(path.read_text(), "## Mine\n\nBy hand."))
    save_model_card(results(judge="another judge"), output_dir)
    assert ModelCard.load(path).data.library_name == "diffusers"
    assert read_notes(path.read_text()) == "## Mine\n\nBy hand." and "another judge" in path.read_text()
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
    assert not namespace["pipe"].get_list_adapters() and not namespace["pipe"].fused_loras


def test_the_card_command_makes_it_again_and_keeps_what_people_wrote(
    output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"results\.json"):
        main(parse_config(["card", str(output_dir)]))
    (output_dir / "results.json").write_text(json.dumps(results()))
    (output_dir / "README.md").write_text(with_notes("old", "By hand."))
    main(parse_config(["card", str(output_dir)]))
    assert capsys.readouterr().out == f"wrote {output_dir / 'README.md'}\n"
    assert (output_dir / "README.md").read_text() == str(model_card(results(), output_dir, "By hand."))


def test_it_says_how_other_programs_load_the_adapter_if_there_is_a_file_for_them(
    results: dict[str, Any], tmp_path: Path
) -> None:
    assert "ComfyUI" not in str(model_card(results, tmp_path))
    (tmp_path / "no-van-gogh-style.safetensors").write_bytes(b"")
    text = str(model_card(results, tmp_path))
    assert "<lora:no-van-gogh-style:1>" in text and "models/loras" in text
    assert "--network_weights no-van-gogh-style.safetensors" in text
    assert "measured at weight 1." in text
    scales = [{"scale": scale} for scale in (0.0, 0.75, 1.0, 3.0)]
    assert "measured between 0.75 and 3." in str(model_card(results | {"scales": scales}, tmp_path))
    text = str(model_card(results | {"pipeline_class": "FluxPipeline"}, tmp_path))
    assert "## Use in ComfyUI\n\nLoad `no-van-gogh-style.safetensors`" in text
    assert "sd-scripts" not in text and "- stable-diffusion\n" not in text and "- flux\n" in text


def test_an_adapter_without_t5_is_used_without_it(results: dict[str, Any], tmp_path: Path) -> None:
    given = results | {"base_model_name_or_path": "owner/model"}
    assert "text_encoder_3" not in str(model_card(given, tmp_path))
    without = given | {"settings": {"without_t5": True}}
    assert ", text_encoder_3=None, tokenizer_3=None)\n" in str(model_card(without, tmp_path))


def test_an_adapter_of_z_image_is_loaded_by_comfyui_as_it_is(results: dict[str, Any], tmp_path: Path) -> None:
    text = str(model_card(results | {"pipeline_class": "ZImagePipeline"}, tmp_path))
    assert "## Use in ComfyUI\n\nLoad `pytorch_lora_weights.safetensors`." in text
    assert "a model strength of `--lora_alpha` / `--rank`" in text
