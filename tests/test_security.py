"""Nobody is let in: no pickle is run, no name leaves its directory, no token is written, no text becomes
markup."""

from __future__ import annotations

import ast
import os
import pickle
import re
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import canvas
import train_unlearn_lora as script
from common.checkpoints import load_checkpoint
from critic.network import ValueNetwork
from evaluation.judges import load_judge
from evaluation.weights import read_state
from hub.__main__ import parse_config as parse_hub_command
from hub.adapter import load_adapter
from hub.card import model_card
from hub.files import read_file, write_file
from hub.pull import files_to_pull
from hub.push import ADAPTER_FILES
from hub.space.about import About, introduction, metrics
from pipelines.base import load_pipeline
from reward.classifier import ClassifierTeacher
from reward.latents import read_shard
from reward.predictor import RewardPredictor
from reward.teacher import Teacher
from reward.train import parse_config as parse_reward_training
from training.config import RunConfig, parse_config

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not {"tests", ".venv", "build", "runs"} & set(path.relative_to(ROOT).parts)
)


# --- what the sources may not say
# -----------------------------------------------------------------------------

BANNED = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
BANNED |= {
    "torch.jit.load",
    "torch.hub.load",
    "numpy.load",
    "np.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "torch.save",
    "extractall",
}
"""Calls that run or unpack what somebody else wrote, or write what only a pickle can read."""


def faults_in(source: str) -> Iterator[str]:
    """What a source says that none may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            yield from (
                f"imports {name}"
                for name in names
                if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "shelve", "marshal")
            )
        if not isinstance(node, ast.Call):
            continue
        called, given = (
            ast.unparse(node.func),
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
        )
        if called in BANNED or called.endswith(".extractall"):
            yield f"calls {called}"
        if called == "torch.load" and given.get("weights_only") != "True":
            yield "calls torch.load without weights_only"
        if (
            given.get("trust_remote_code", "False") != "False"
            or given.get("shell", "False") != "False"
            or given.get("allow_pickle", "False") != "False"
        ):
            yield f"calls {called} with {given}"
        if called.endswith("from_pretrained") and given.get("use_safetensors", "True") not in ("True",):
            yield f"calls {called} without safetensors"


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 80
    found = {
        f"{path.relative_to(ROOT)} {fault}"
        for path in SOURCES
        for fault in faults_in(path.read_text(encoding="utf-8"))
    }
    assert not found


FAULTY = [
    "import pickle",
    "from pickle import loads",
    "torch.load(x)",
    "torch.load(x, weights_only=False)",
    "yaml.load(x)",
    "eval(x)",
    "os.system(x)",
]
FAULTY += [
    "subprocess.run(x, shell=True)",
    "A.from_pretrained(x, trust_remote_code=True)",
    "np.load(x, allow_pickle=True)",
    "archive.extractall(x)",
]


@pytest.mark.parametrize("source", FAULTY)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults_in(source))


def test_every_dependency_has_a_bound_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    assert len(wanted) > 20 and not [
        entry for entry in wanted if not re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", entry)
    ]


# --- pickles
# --------------------------------------------------------------------------------------------------


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Puts a pickle that leaves a mark at a place; whatever a test does, it must not have been run."""
    mark = tmp_path / "planted"

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": Evil(mark)}, path)
        return path

    yield put
    assert not mark.exists(), "the pickle was run"


def test_the_planted_pickle_would_leave_its_mark(tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(Evil(tmp_path)))


NAMES = [
    "pytorch_model.bin",
    "model.bin",
    "diffusion_pytorch_model.bin",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "model.pkl",
    "open_clip_pytorch_model.bin",
]
NAMES += [
    "pytorch_lora_weights.bin",
    "training_args.bin",
    "optimizer.bin",
    "scheduler.bin",
    "random_states_0.pkl",
    "000000.pt",
    "state.pt",
]


def plant_everywhere(plant: Callable[[Path], Path], directory: Path) -> None:
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        for name in NAMES:
            plant(folder / name)


def without_weights(directory: Path) -> None:
    for path in directory.rglob("*.safetensors"):
        path.unlink()


def refused(load: Callable[[], object]) -> None:
    with pytest.raises(ValueError) as caught:
        load()
    assert str(caught.value).strip() and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_a_pickle_in_place_of_weights_is_refused(
    part: str, plant: Callable[[Path], Path], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_pipeline_dir, tmp_path / "base")
    plant_everywhere(plant, base)
    assert load_pipeline(base)  # beside the weights pickles are passed over
    without_weights(base / part)
    refused(lambda: load_pipeline(base))
    refused(lambda: load_pipeline(tiny_pipeline_dir, vae=str(shutil.copytree(base / part, tmp_path / "vae"))))


@pytest.mark.parametrize("name", ["base.ckpt", "base.pt", "base.bin", "base", "base.safetensors"])
def test_a_base_in_one_file_that_is_a_pickle_is_refused(
    name: str, plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    refused(lambda: load_pipeline(plant(tmp_path / name)))


def test_pickles_are_no_networks(
    plant: Callable[[Path], Path], tiny_reward_dir: Path, tmp_path: Path
) -> None:
    """Reward predictor, critic, judge, classifier, CLIP: with all of the pickles beside the weights, and
    in place of them."""
    ValueNetwork(4, 8, 16, width=8).save_pretrained(tmp_path / "critic")
    loaders: dict[str, tuple[Path, Callable[[Path], object]]] = {
        "reward": (tiny_reward_dir, RewardPredictor.from_pretrained),
        "critic": (tmp_path / "critic", ValueNetwork.from_pretrained),
        "judge": (Path(canvas.JUDGE), load_judge),
        "clip": (Path(canvas.CLIP), lambda directory: Teacher.from_pretrained(f"local-dir:{directory}")),
    }
    for name, (source, load) in loaders.items():
        copy = shutil.copytree(source, tmp_path / "copies" / name)
        plant_everywhere(plant, copy)
        assert load(copy)
        without_weights(copy)
        refused(lambda load=load, copy=copy: load(copy))
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    plant_everywhere(plant, classifier)
    (classifier / "config.json").write_text(
        '{"architectures": ["ViTForImageClassification"], "model_type": "vit"}'
    )
    refused(lambda: ClassifierTeacher.from_pretrained(str(classifier)))
    refused(lambda: load_judge(classifier))


@pytest.mark.parametrize("name", ["clip.pt", "clip.bin", "clip.weights", "clip", "clip.safetensors"])
def test_a_clip_file_that_is_a_pickle_is_refused(
    name: str, plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    refused(lambda: Teacher.from_pretrained("ViT-B-32", str(plant(tmp_path / name))))


@pytest.mark.parametrize("name", ["head.pth", "head.pt", "head.bin", "head.safetensors"])
def test_a_classifier_file_that_is_a_pickle_of_more_than_tensors_is_refused(
    name: str, plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    refused(lambda: read_state(plant(tmp_path / name)))


def test_an_adapter_that_is_a_pickle_is_refused(
    plant: Callable[[Path], Path], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    plant_everywhere(plant, tmp_path / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    refused(lambda: load_adapter(pipe, tmp_path / "adapter"))
    refused(lambda: load_adapter(pipe, tmp_path / "adapter", weight_name="pytorch_lora_weights.bin"))
    plant(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    refused(lambda: load_adapter(pipe, tmp_path / "adapter"))
    refused(lambda: read_file(tmp_path / "adapter" / "pytorch_lora_weights.safetensors"))


def test_checkpoints_and_caches_of_pickles_are_passed_over(
    plant: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    plant_everywhere(plant, tmp_path / "out")
    for name in ("latest", "checkpoint-3"):
        refused(lambda name=name: load_checkpoint(tmp_path / "out", name))
    assert read_shard(plant(tmp_path / "000000.safetensors"), say=False) is None


# --- names, modes, tokens
# -------------------------------------------------------------------------------------


def test_of_a_repository_only_known_names_are_fetched() -> None:
    strange = {
        "../../x",
        "/etc/passwd",
        "critic/../../x",
        "model.bin",
        "..\\x",
        "a/../README.md",
        "modeling.py",
    }
    assert set(files_to_pull(strange | set(ADAPTER_FILES))) == set(ADAPTER_FILES)
    assert set(files_to_pull(strange | {"config.json", "model.safetensors"})) == {
        "config.json",
        "model.safetensors",
    }
    refused(lambda: files_to_pull(strange))
    assert all(not name.startswith(("/", ".")) and ".." not in name for name in ADAPTER_FILES)


def test_what_is_written_aside_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, write = [], os.fchmod

    def give(descriptor: int, mode: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        write(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", give)
    write_file(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    assert modes == [0o600] and [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


TOKEN = "hf_MustNotBeSeenAnywhere0123456789"


@pytest.mark.parametrize("fails", [False, True], ids=["a run", "a run that ends in a bug"])
def test_no_token_is_written(
    fails: bool,
    arguments: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither the flag's nor the environment's: in no file, no line and no traceback, whatever its
    encoding in the tracker's events."""
    monkeypatch.setenv("HF_TOKEN", TOKEN[::-1])
    config = arguments(hub_token=TOKEN, report_to="tensorboard", validation_steps=1, checkpointing_steps=1)
    caplog.set_level("DEBUG")
    if fails:
        monkeypatch.setattr(script, "evaluate_run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            script.main(config)
        assert TOKEN not in str(caught.getrepr(style="native"))
    else:
        script.main(config)
    said = capfd.readouterr()
    seen = [
        caplog.text.encode(),
        said.out.encode(),
        said.err.encode(),
        *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()),
    ]
    assert len(seen) > 8
    for token in (TOKEN, TOKEN[::-1]):
        assert not [content for content in seen if token.encode() in content]


@pytest.mark.parametrize(
    "parse",
    [
        lambda more: parse_config(["--concept", "cat", *more]),
        lambda more: parse_reward_training(["--output_dir", "reward", *more]),
        lambda more: parse_hub_command(["push", "adapter", *more]),
    ],
    ids=["training", "reward", "hub"],
)
@pytest.mark.parametrize(
    "mistake", [["--hub_tokn", TOKEN], [f"--token={TOKEN}"], ["--hub_private_repo", TOKEN]]
)
def test_no_token_is_repeated_with_a_mistake(
    parse: Callable[[list[str]], object], mistake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(mistake)
    said = capsys.readouterr().err
    assert TOKEN not in said and "hf_..." in said


@pytest.mark.parametrize(
    "text",
    [
        f"hub_tokn: {TOKEN}",
        f"hub_token: [{TOKEN}]",
        f"hub_private_repo: {TOKEN}",
        f"rank: {TOKEN}",
        f"'hub_token': '{TOKEN}",
        f"{TOKEN}: 1",
    ],
)
def test_no_token_in_a_file_of_settings_is_repeated_with_a_mistake(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"concept: [cat]\n{text}\n")
    with pytest.raises(SystemExit) as caught:
        parse_config(["--config", str(tmp_path / "config.yaml")])
    assert caught.value.code == 2 and TOKEN not in capsys.readouterr().err


# --- texts
# ----------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "</td><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "<!-- end of notes -->",
    "`</code><svg onload=alert(1)>",
]


class Markup(HTMLParser):
    """The tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_others_stay_texts_on_cards_and_pages(text: str, tmp_path: Path) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    side = {"UA": 1.0, "per_class": {text: {text: 90.0, "x": 80.0}}}
    results = {
        **dict.fromkeys(
            ("base_model_name_or_path", "revision", "judge", "method", "reward_model", "critic_model"), text
        ),
        **{name: [text] for name in ("concept", "forget_prompts", "retain_prompts", "seeds")},
        **{
            "base": side,
            "adapter": side | {"per_class": {text: {text: 1.0, "x": 2.0}}},
            "targets": {"y": [text]},
        },
        **{
            "settings": {"concept": [text], text: text},
            "versions": {text: text},
            "training": {"stopped_by": text, "iterations": 1},
        },
    }
    about = About([text], text, text, [text], [text], results)
    card = str(model_card(results, tmp_path)).split("\n---\n", 1)[1]
    for markdown in (card, introduction(about, text), metrics(about)):
        page = Markup()
        page.feed(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
        assert not {"script", "img", "svg", "iframe", "object"} & set(page.tags)
        assert not [
            name
            for name, value in page.attributes
            if name.startswith("on") or (value or "").lower().startswith("javascript:")
        ]
