"""Specs, prompt files, results and cards, whoever wrote them: read, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import DEEP, anything, changed, damaged, fuzz, put, refused_or_read
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from evaluation.prompt_file import read_prompt_file
from hub.card import model_card, save_model_card
from hub.header import results_header
from hub.notes import BEGIN, END, merge_notes, read_notes, with_notes
from hub.push import local_card
from hub.results import read_results
from hub.space.about import About, introduction, metrics, sampling
from reward.concept import read_prompts, read_spec

SPEC = {
    "concepts": ["Van Gogh style"],
    "kinds": ["style"],
    "forget": [{"prompt": "a cat in Van Gogh style", "anchors": ["a cat"]}],
    "retain": ["a cat", "a dog"],
}
LECO = [
    {
        "target": "van gogh",
        "positive": "van gogh",
        "unconditional": "",
        "neutral": "a painting",
        "action": "erase",
        "guidance_scale": 1.0,
    }
]
ROWS = [
    {"prompt": "a cat in Van Gogh style", "group": "forget", "label": "Van Gogh"},
    {"prompt": "a dog", "group": "cross_domain", "label": "dog"},
]
SIDE = {
    "UA": 1.0,
    "IRA": 99.0,
    "CRA": None,
    "ci95": {"UA": [0.0, 2.0]},
    "per_class": {"style": {"Van Gogh": 1.0, "Neon": 99.0}},
}
RESULTS = {
    "concept": ["Van Gogh style"],
    "base_model_name_or_path": "owner/base",
    "revision": None,
    "pipeline_class": "StableDiffusionPipeline",
    "base": SIDE,
    "adapter": SIDE | {"UA": 100.0, "per_class": {"style": {"Van Gogh": 99.0, "Neon": 90.0}}},
    "targets": {"style": ["Van Gogh"]},
    "seeds": [0, 1],
    "judge": "a judge",
    "prompts": {"forget": 2, "retain": 3},
    "reward_model": "owner/reward",
    "forget_prompts": ["a cat in Van Gogh style"],
    "retain_prompts": ["a cat"],
    "settings": {"rank": 8, "hub_token": "hf_x", "concept": ["Van Gogh style"]},
    "versions": {"torch": "2"},
    "training": {"iterations": 3, "stopped_by": "--max_train_iterations"},
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
}
as_json = st.builds(lambda value: json.dumps(value).encode(), changed(RESULTS) | anything())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("valid", [SPEC, LECO], ids=["ours", "LECO"])
@fuzz()
@given(data=st.data())
def test_specs(folder: Path, valid: Any, data: st.DataObject) -> None:
    text = yaml.safe_dump(valid).encode()
    content = data.draw(
        damaged(text)
        | changed(valid).map(lambda value: json.dumps(value).encode())
        | anything().map(lambda value: json.dumps(value).encode())
    )
    spec = refused_or_read("spec", read_spec, put(folder / "spec.yaml", content))
    assert spec is None or (spec.forget_prompts and spec.retain_prompts and all(spec.anchors))


def test_a_spec_that_grows_beyond_all_memory_once_it_is_written_out(tmp_path: Path) -> None:
    """Ten lists, each of which holds the one before it nine times."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    bomb = "\n".join(lines)
    fields = {"concepts": "*a11", "forget": "*a11", "retain": "*a11", "anchors": "*a11", "kinds": "*a11"}
    for field in fields:
        rest = "\n".join(f"{name}: {value if name == field else '[cat]'}" for name, value in fields.items())
        assert (
            refused_or_read("spec", read_spec, put(tmp_path / "spec.yaml", f"{bomb}\n{rest}".encode()))
            is None
        )
        inner = "\n".join(
            f"{name}: {value if name == field else '[cat]'}" for name, value in fields.items()
        ).replace("*a11", "[*a11]")
        listed = [line.split(": ", 1)[1] for line in lines]
        anchored = f"concepts: [{', '.join(listed)}]\nforget: [*a11]\nretain: [cat]"
        assert refused_or_read("spec", read_spec, put(tmp_path / "spec.yaml", inner.encode())) is None
        assert refused_or_read("spec", read_spec, put(tmp_path / "spec.yaml", anchored.encode())) is None
    leco = f"- target: cat\n  neutral: [{', '.join(line.split(': ', 1)[1] for line in lines)}]"
    assert refused_or_read("spec", read_spec, put(tmp_path / "spec.yaml", leco.encode())) is None
    assert (
        refused_or_read(
            "spec", read_spec, put(tmp_path / "spec.yaml", leco.replace("neutral", "action").encode())
        )
        is None
    )


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch planted']", "!!python/name:os.system", "!!python/module:os"],
)
def test_a_spec_runs_nothing(tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        refused_or_read("spec", read_spec, put(tmp_path / "spec.yaml", f"concepts: {tag}".encode())) is None
    )
    assert not (tmp_path / "planted").exists()


@fuzz()
@given(
    content=damaged("a cat\n# comment\n\n  ein Bär \r\na dog\n".encode())
    | st.text().map(lambda text: text.encode())
)
def test_prompts_one_a_line(folder: Path, content: bytes) -> None:
    prompts = refused_or_read("prompts", read_prompts, put(folder / "prompts.txt", content))
    assert prompts is None or all(prompt and prompt == prompt.strip() for prompt in prompts)


CSV = "prompt,group,label\n" + "".join(f'"{row["prompt"]}",{row["group"]},{row["label"]}\n' for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


PUBLISHED = "prompt,sd_seed,sd_guidance_scale\na cat,4261553411,7.5\na dog,7.0,12\n"


@pytest.mark.parametrize(("suffix", "valid"), [("csv", CSV), ("jsonl", JSONL), ("csv", PUBLISHED)])
@fuzz()
@given(data=st.data())
def test_prompt_files(folder: Path, suffix: str, valid: str, data: st.DataObject) -> None:
    lines = changed(ROWS).map(
        lambda rows: "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode()
    )
    content = data.draw(
        damaged(valid.encode()) | lines | st.text().map(lambda text: ("prompt,group,label\n" + text).encode())
    )
    rows = refused_or_read("prompt file", read_prompt_file, put(folder / f"prompts.{suffix}", content))
    assert rows is None or all(row.prompt.encode() and row.label.encode() and row.place for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", DEEP),
        ("a.jsonl", b'{"a":' * 50_000),
        ("a.csv", b'prompt,group,label\n"' + b"x" * 200_000 + b'",forget,y\n'),
        ("a.csv", b"prompt,group,label\n" + b'"' * 99_999),
        ("a.jsonl", b'{"prompt": "\\ud800", "group": "forget", "label": "x"}'),
        ("a.csv", b"\x00prompt,group,label\n\x00,\x00,\x00\n"),
    ],
)
def test_prompt_files_that_break_parsers(tmp_path: Path, name: str, content: bytes) -> None:
    assert refused_or_read("prompt file", read_prompt_file, put(tmp_path / name, content)) is None


def use_results(folder: Path) -> None:
    """Everything that is made of results."""
    results = refused_or_read("results.json", read_results, folder)
    refused_or_read("results.json", local_card, folder)
    if results is None:
        return
    card = str(model_card(results, folder))
    ModelCard(card)  # its front matter is YAML that huggingface_hub reads
    assert "hf_x" not in card and "<script" not in card
    header = results_header(results)
    assert all(isinstance(value, str) for value in header.values())
    shown = About(["x"], "", None, [], [], results)
    assert metrics(shown) and introduction(shown, "base") and sampling(shown)


@fuzz(200)
@given(content=as_json | damaged(json.dumps(RESULTS).encode()))
def test_results(folder: Path, content: bytes) -> None:
    put(folder / "results.json", content)
    use_results(folder)


def test_results_that_are_nested_without_end(tmp_path: Path) -> None:
    put(tmp_path / "results.json", DEEP)
    assert refused_or_read("results.json", read_results, tmp_path) is None
    put(tmp_path / "results.json", json.dumps(RESULTS).encode())
    use_results(tmp_path)
    assert read_results(tmp_path) == RESULTS and "Van Gogh" in save_model_card(RESULTS, tmp_path).read_text()


lines_of_cards = st.lists(
    st.sampled_from(
        [
            BEGIN,
            END,
            "---",
            "",
            "# title",
            "<!-- notes: x -->",
            "<script>alert(1)</script>",
            "text",
            " " + BEGIN,
            "\r",
        ]
    )
    | st.text(max_size=9),
    max_size=12,
).map("\n".join)


@fuzz(300)
@given(card=lines_of_cards, notes=st.text(max_size=30).map(str.strip) | lines_of_cards.map(str.strip))
def test_notes_outlive_every_card(card: str, notes: str) -> None:
    """What is read back of a card is what was put into it, unless the notes themselves pretend to end."""
    kept = refused_or_read("notes", with_notes, card, notes)
    again = with_notes(kept, read_notes(kept))
    assert again == with_notes(again, read_notes(again))
    if not any(mark in text for mark in ("<!-- notes", "<!-- end of notes") for text in (card, notes)):
        assert read_notes(kept) == notes.strip()
    assert notes in merge_notes(read_notes(card), notes)


def test_a_card_with_many_beginnings_and_no_end_takes_no_time() -> None:
    """Quadratic, this would be 10^11 steps."""
    card = (BEGIN + "\n") * 200_000
    assert refused_or_read("notes", read_notes, card) == ""


@fuzz(60)
@given(front=anything(4).map(json.dumps) | st.text(max_size=40), notes=st.text(max_size=20).map(str.strip))
def test_front_matter_of_any_kind_is_replaced(folder: Path, front: str, notes: str) -> None:
    """A card that is there already gives its notes to the new one, and nothing else."""
    put(folder / "README.md", f"---\n{front}\n---\n{BEGIN}\n\n{notes}\n\n{END}\n".encode())
    (folder / "results.json").unlink(missing_ok=True)
    refused_or_read("front matter", save_model_card, RESULTS, folder)
    card = (folder / "README.md").read_text()
    assert ModelCard(card).data.base_model == "owner/base" and card.count("\n---\n") == 1 + notes.count(
        "\n---\n"
    )
