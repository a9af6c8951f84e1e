"""results.json, probes.json and diagnostics.jsonl of others, a field of them changed: every reader takes them
or says in a sentence why not, and nothing of them is markup or code on a card, a report or a page."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from attack import FULL, Tally, sample
from hostile import as_text, changed, changes
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from benchmarks.compare.records import Records
from benchmarks.jobs import Job, run_job
from common.flags import dump_yaml
from common.schema import unknown_keys
from evaluation.probes.__main__ import merge_into_results
from evaluation.probes.__main__ import table as probes_table
from evaluation.protocol import grid_title, pareto_title
from evaluation.report.__main__ import main as report
from evaluation.report.__main__ import parse_config as parse_report
from hub.__main__ import main as hub
from hub.__main__ import parse_config as parse_hub
from hub.header import results_header
from hub.provenance import what_adapter_says
from hub.push import local_card, public_settings
from hub.results import Probes, Results, read_probes, read_results
from hub.space.about import introduction, metrics, read_about, sampling, title
from hub.space.bundle import space_card
from training.diagnostics import Diagnostics

markdown_it = pytest.importorskip("markdown_it")

RECORDED = Path(__file__).parent / "recorded"
ROOT = Path(__file__).parents[2]
FILES = ("results.json", "probes.json", "diagnostics.jsonl")
SHARES = 200 if FULL else 1
"""Tests that the changes of one file are shared among, for several processes."""
BASES = ("models/base.safetensors", "owner/base", "bundled canvas", "a-base")
"""Of each kind that a card speaks of in its own way."""


def recorded(name: str) -> Any:
    """A file of a run; of lines a list."""
    text = (RECORDED / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def write(folder: Path, name: str, value: Any) -> None:
    text = "".join(f"{as_text(line)}\n" for line in value) if isinstance(value, list) else as_text(value)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a report shows: adapter, pictures, images, probes."""
    folder = tmp_path_factory.mktemp("run")
    restore(folder)
    save_file({"x": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors", {"concept": '["cat"]'})
    save_file({"x": torch.zeros(1)}, folder / "no-van-gogh-style.safetensors")
    pictures = ["before_after.png", "pareto.png"]
    for name, probe in recorded("probes.json")["probes"].items():
        pictures += [f"probe-{name}-{i}.png" for i in range(1, len(probe["rows"]) + 1)]
    for one in recorded("results.json")["shown"]:
        file = f"{one['index']:05d}-seed{one['seed']}.png"
        pictures += [f"images/base/{file}", f"images/weight-1/{file}"]
    for name in pictures:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def restore(folder: Path) -> None:
    """Put the files of the run back."""
    for name in FILES:
        shutil.copyfile(RECORDED / name, folder / name)


# Every reader, by the module that it is in; what it makes of a folder, to be looked at.


def made_card(folder: Path) -> str:
    (folder / "README.md").unlink(missing_ok=True)
    hub(parse_hub(["card", str(folder)]))
    return (folder / "README.md").read_text(encoding="utf-8")


def pushed(folder: Path) -> str:
    (folder / "README.md").unlink(missing_ok=True)
    dump_yaml(public_settings(folder))
    return local_card(folder)


def spoken_of(folder: Path) -> str:
    said = what_adapter_says(folder)
    header = results_header(read_results(folder))
    assert all(isinstance(value, str) for value in header.values())
    assert all(isinstance(text, str) for text in said["concept"] or [])
    return ""


def shown_on_a_page(folder: Path) -> str:
    about = read_about(folder)
    assert sampling(about) and isinstance(title(about), str)
    return f"{introduction(about, 'a-base')}\n\n{metrics(about)}"


def shown_in_a_space(folder: Path) -> str:
    about = read_about(folder)
    card = space_card(about, "owner/adapter")
    assert ModelCard(card).data.sdk == "gradio"
    return card.split("\n---\n", 1)[1]


def reported(folder: Path) -> str:
    report(parse_report([str(folder)]))
    results = read_results(folder)
    assert grid_title(results) and pareto_title(results)
    return (folder / "report.html").read_text(encoding="utf-8")


def probed(folder: Path) -> str:
    report = read_probes(folder)
    probes_table(report)
    merge_into_results(report, folder)
    return ""


def resumed(folder: Path) -> str:
    Diagnostics(folder / "diagnostics.jsonl").begin(2)
    return ""


def benchmarked(folder: Path) -> str:
    for name in ("results.json", "probes.json"):
        run_job(Job([], folder / name, folder / "log"))
    return ""


def kept(folder: Path) -> str:
    """As the record of a run."""
    text = (folder / "results.json").read_text(encoding="utf-8")
    (folder / "record.json").write_text(text.replace("{", '{"base_weights": "a base",', 1), encoding="utf-8")
    Records(folder, "a base").of("record", dict)
    return ""


READERS: dict[str, Callable[[Path], str]] = {
    "hub.commands.card": made_card,
    "hub.push": pushed,
    "hub.provenance": spoken_of,
    "hub.space.about": shown_on_a_page,
    "hub.space.bundle": shown_in_a_space,
    "evaluation.report.run": reported,
    "evaluation.probes.__main__": probed,
    "training.diagnostics": resumed,
    "benchmarks.jobs": benchmarked,
    "benchmarks.compare.records": kept,
}
AFTER_WRITERS = {"training.diagnostics", "benchmarks.jobs"}
"""Readers that stand after one that writes a file of the run."""
OWN = {
    "evaluation.choice",
    "benchmarks.ablation.run",
    "benchmarks.gpu.checks",
    "benchmarks.memory.trial",
}
"""Modules that read one value by a reader, as others do, or what a process of theirs has just written."""


def imports_of(path: Path, module: str) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in found for alias in node.names}


def test_every_reader_is_attacked() -> None:
    """Whoever reads one of the files does it by `hub.results`, and is in the table above."""
    readers = {"read_results", "read_probes", "read_diagnostics", "read_file", "parse_line"}
    rooms = ("hub", "evaluation", "training", "benchmarks")
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if readers & imports_of(path, "hub.results")
    }
    assert found - OWN <= READERS.keys() and found >= OWN


# What is markup and code in what they make


class Shape(HTMLParser):
    """Every element with its attributes, and their values where they lead somewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        leads = {"href", "src", "action", "style", "content", "srcset"}
        self.found.add(
            (
                tag,
                *sorted(f"{name}={(value or '')[:60]}" if name in leads else name for name, value in attrs),
            )
        )

    def handle_comment(self, data: str) -> None:
        self.found.add(("a comment", " ".join(data.split())[:30]))

    def handle_decl(self, decl: str) -> None:
        self.found.add(("a declaration", decl))


def shape_of_page(page: str) -> set[Any]:
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", page)
    return Shape(page).found


def shape_of_card(card: str) -> set[Any]:
    """Elements of a card as a site shows it that lets HTML through, the keys of its metadata, and its code
    without the texts in it."""
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", card)
    body, shape = card, set()
    if card.startswith("---\n"):
        front, body = card[4:].split("\n---\n", 1)
        shape |= {("metadata", key) for key in yaml.safe_load(front)}
        assert ModelCard(card).data.library_name == "diffusers"
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in reader.parse(body):
        if token.type in ("fence", "code_block"):
            shape.add(
                (
                    token.type,
                    token.info,
                    "".join(c for c in token.content if not c.isprintable() and c != "\n"),
                )
            )
            tree = ast.parse(token.content)
            shape |= {("code", ast.dump(Nameless().visit(node))) for node in tree.body}
    return shape | Shape(reader.render(body)).found


class Nameless(ast.NodeTransformer):
    """Code without the texts in it."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("")


SHAPES: dict[str, Callable[[str], set[Any]]] = {
    "evaluation.report.run": shape_of_page,
    "hub.commands.card": shape_of_card,
    "hub.push": shape_of_card,
    "hub.space.about": shape_of_card,
    "hub.space.bundle": shape_of_card,
}


def honest_changes() -> Iterator[dict[str, Any]]:
    """The run as it is, and with whatever else a card, honestly, has markup for."""
    results = recorded("results.json")
    yield results
    for number, base in enumerate(BASES):
        revision, method = (None, "main")[number % 2], (None, "merging")[number // 2]
        yield results | {"base_model_name_or_path": base, "revision": revision, "method": method}
    yield results | {"base_model_name_or_path": "owner/base", "revision": None}
    yield results | {"pipeline_class": "StableDiffusionXLPipeline", "shown": []}
    yield {name: value for name, value in results.items() if name not in ("targets", "settings", "judge")}
    fallen = {"per_class": {"style": {"Mosaic": 1.0}}}
    yield results | {"base": results["base"] | fallen, "adapter": results["adapter"] | fallen}


@pytest.fixture(scope="module")
def honest(folder: Path) -> dict[str, set[Any]]:
    """Of each reader, the markup of honest files."""
    found: dict[str, set[Any]] = {name: set() for name in SHAPES}
    for results in honest_changes():
        write(folder, "results.json", results)
        for name, shape in SHAPES.items():
            found[name] |= shape(READERS[name](folder))
    restore(folder)
    return found


def outcome(name: str, folder: Path) -> tuple[str, str]:
    """How a reader ends, and what it has made, if anything."""
    try:
        return "read", READERS[name](folder)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and 10 < len(message) < 2500 and message.isprintable(), message[:3000]
        return "refused", ""


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", FILES)
def test_a_changed_field_is_a_sentence_or_a_text(
    name: str, share: int, folder: Path, honest: dict[str, set[Any]], tally: Tally
) -> None:
    original, looked_at = recorded(name), set[str]()
    for change in sample(changes(original))[share :: SHARES if FULL else 4]:  # ten readers each
        value, endings = changed(original, change), set()
        restore(folder)
        for reader in READERS:
            if reader in AFTER_WRITERS:
                restore(folder)
            write(folder, name, value)
            ending, made = outcome(reader, folder)
            endings.add(ending)
            if made and made not in looked_at:
                foreign = SHAPES[reader](made) - honest[reader]
                assert not foreign, (reader, change, sorted(map(str, foreign))[:5])
                looked_at.add(made)
        tally("changed fields", "refused by a reader" if "refused" in endings else "read as texts")


def test_the_recorded_run_is_read_by_everyone(folder: Path) -> None:
    restore(folder)
    made = {reader: outcome(reader, folder) for reader in READERS}
    assert {ending for ending, _ in made.values()} == {"read"}
    headings = ("## Results", "## What suffered", "## Use in ComfyUI", "| --concept |")
    assert all(text in made["hub.commands.card"][1] for text in headings)
    assert made["evaluation.report.run"][1].count("<h2>") == 9


@pytest.mark.parametrize(("name", "wanted"), [("results.json", Results), ("probes.json", Probes)])
def test_the_schema_knows_every_field_of_a_run(name: str, wanted: Any) -> None:
    assert list(unknown_keys(recorded(name), wanted)) == []
