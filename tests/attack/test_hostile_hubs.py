"""A Hub that stalls, drips, lies or answers nonsense: every command that resolves a name ends, soon and in a
sentence."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import FrameType

import pytest
import torch
from attack import FULL, Tally, sample
from commands import run
from diffusers import UNet2DConditionModel
from hostile_hub import ACTS
from huggingface_hub import close_session
from loopback import LoopbackHub
from peft import LoraConfig

import canvas
from common import hub_client
from hub.adapter import save_adapter

page = pytest.importorskip("hub.space.page", reason="a page needs Gradio", exc_type=ImportError)
LIMIT = 240
"""Seconds after which a command hangs; with the patience that it has here it ends in a few, on idle cores."""
PLACES = {"everything": ".", "questions": "/api/", "heads": "^HEAD", "files": "^GET /(?!api/)"}
"""Of which requests the Hub does it: it answers all others as it should."""
FEW = ["--num_inference_steps", "1"]
TRAIN = ["--concept", "x", "--output_dir", "out"]
BASED = ["--pretrained_model_name_or_path", "someone/base", "--clip_model", f"local-dir:{canvas.CLIP}"]
BASED += ["--reward_model_name_or_path", str(canvas.REWARD)]
JUDGED = [*FEW, "--concept", "Van Gogh style", "--seeds", "0", "--fid_features", "none"]
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "train, base": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", *BASED],
    ),
    "train, VAE": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", "--pretrained_vae_model_name_or_path", "someone/base"],
    ),
    "train, reward": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", "--reward_model_name_or_path", "someone/reward"],
    ),
    "train, critic": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", "--advantage", "gae", "--critic_model_name_or_path", "someone/critic"],
    ),
    "train, teacher": ("train_unlearn_lora", [*TRAIN, "--dry_run", "--clip_model", "hf-hub:someone/clip"]),
    "train, upload": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", "--push_to_hub", "--hub_model_id", "someone/new"],
    ),
    "train, classifier": (
        "train_unlearn_lora",
        [*TRAIN, "--dry_run", "--reward_type", "classifier", "--classifier_name_or_path", "someone/judge"],
    ),
    "critic.train": (
        "critic.train",
        [*TRAIN, *FEW, "--num_rollouts", "6", "--max_train_steps", "0", *BASED],
    ),
    "reward.train": (
        "reward.train",
        [
            *("--output_dir", "out", *FEW, "--num_images", "2", "--max_train_steps", "1"),
            "--pretrained_model_name_or_path",
            "someone/base",
            "--prompts",
            "prompts.txt",
            "--clip_model",
            f"local-dir:{canvas.CLIP}",
        ],
    ),
    "reward.concept": (
        "reward.concept.__main__",
        ["--concept", "x", "--reward_model_name_or_path", "someone/reward"],
    ),
    "evaluation, adapter": (
        "evaluation.__main__",
        [*JUDGED, "--adapter", "someone/adapter", "--output_dir", "out"],
    ),
    "evaluation, base": (
        "evaluation.__main__",
        [
            *JUDGED,
            *("--judge_name_or_path", str(canvas.JUDGE)),
            "--adapter",
            "adapter",
            "--pretrained_model_name_or_path",
            "someone/base",
            "--output_dir",
            "out",
        ],
    ),
    "evaluation, judge": (
        "evaluation.__main__",
        [
            *JUDGED,
            "--adapter",
            "adapter",
            "--pretrained_model_name_or_path",
            "bundled canvas",
            "--judge_name_or_path",
            "someone/judge",
            "--output_dir",
            "out",
        ],
    ),
    "predictor": (
        "evaluation.predictor.__main__",
        [*FEW, "--num_latents", "2", "--reward_model_name_or_path", "someone/reward", "--output_dir", "out"],
    ),
    "hub pull": ("hub.__main__", ["pull", "someone/adapter", "--output_dir", "out"]),
    "hub push": ("hub.__main__", ["push", "adapter", "--hub_model_id", "someone/new"]),
    "hub push a critic": ("hub.__main__", ["push", str(canvas.REWARD), "--hub_model_id", "someone/new"]),
    "hub fuse": (
        "hub.__main__",
        [
            "fuse",
            "--adapter",
            "adapter",
            "--output_dir",
            "out",
            "--pretrained_model_name_or_path",
            "someone/base",
        ],
    ),
    "hub space": ("hub.__main__", ["space", "--adapter", "someone/adapter"]),
    "baselines": (
        "benchmarks.baselines.__main__",
        [*TRAIN, "--evaluation_seeds", "--method", "uce", *BASED],
    ),
}
"""Every place where a command asks the Hub, with arguments of which nothing else fails before. What is not
hindered has little to do."""
ATTACKS = [
    (command, act, list(PLACES)[(i + j) % len(PLACES)])
    for (i, command), (j, act) in product(enumerate(COMMANDS), enumerate(ACTS))
]
"""Every act for every command, and for some command in every place."""


class Hangs(BaseException):
    """It does not end."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """
    Raises:
        Hangs: it takes longer.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"not ended within {seconds} s")

    kept = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an adapter and prompts."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(canvas.PIPELINE, subfolder="unet")
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["attn2.to_k"]))
    save_adapter(tmp_path / "adapter", unet)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return tmp_path


@pytest.mark.parametrize(("command", "act", "place"), sample(ATTACKS)[: None if FULL else 4])
def test_it_ends_in_a_sentence(
    command: str,
    act: str,
    place: str,
    here: Path,
    tiny_pipeline_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: Tally,
) -> None:
    """The client's patience is short, and its waits between attempts are counted and left out."""
    waited: list[float] = []
    before = set(here.iterdir())
    with LoopbackHub(here.parent / f"{here.name}-hub") as hub:
        hub.redirect_client(monkeypatch)
        for name, directory in {
            "base": tiny_pipeline_dir,
            "reward": canvas.REWARD,
            "clip": canvas.CLIP,
            "adapter": here / "adapter",
        }.items():
            hub.api().create_repo(f"someone/{name}")
            hub.api().upload_folder(repo_id=f"someone/{name}", folder_path=directory)
        known = len(hub.requests)
        hub.fail(re.compile(PLACES[place]), times=10**9, status=ACTS[act])
        with monkeypatch.context() as patch, within(LIMIT):
            patch.setattr(hub_client, "PATIENCE", 0.2)
            patch.setattr(hub_client, "MOST", 2**21)
            patch.setattr(time, "sleep", waited.append)
            patch.setattr(page, "launch", lambda *given: None)
            module, line = COMMANDS[command]
            ended = run(module, line, monkeypatch)
        close_session()
        assert len(hub.requests) > known, f"the Hub was not asked: {ended.said}"
    assert "Traceback" not in ended.said, ended.said
    assert sum(waited) < 600, waited
    if ended.code:
        lines = ended.said.strip().splitlines()
        assert ended.code in (1, 2) and [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert "hf_secret" not in lines[-1] and len(lines[-1]) < 2000
        assert set(here.iterdir()) - before <= {here / "out"}
    tally("hostile Hubs", "in a sentence" if ended.code else "done without it")
