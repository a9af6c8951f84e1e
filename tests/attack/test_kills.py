"""Kills that no process can answer: at all that is asked of the disk, by every writer, in training, in an
evaluation and in reward training. What goes on comes to the same bits as what was never killed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from attack import FULL, Tally, sample, share
from diffusers import DDIMScheduler
from killed import outcome, run_and_kill
from safetensors.torch import load_file
from writers import NEW_ONLY, WRITERS, Material, build, check_whole, content_of, unfinished_in

import evaluation.__main__ as evaluation
import train_unlearn_lora as script
from common.checkpoints import list_checkpoints
from common.files import make_directory
from evaluation.judge import Judge
from hub.adapter import save_adapter
from reward.distil import Checkpointing, DistilConfig, distil
from reward.latents import Latents
from reward.predictor import RewardPredictor
from training.config import RunConfig

KILLED = -9
KILLS = 8 if FULL else 2
"""Of one training or evaluation."""
OPERATIONS = range(1, 10)
"""Of one writer."""


@pytest.fixture(scope="session")
def world(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return build(tiny_pipeline_dir, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("name", "at"), sample((name, at) for name in WRITERS for at in OPERATIONS))
def test_a_writer_that_is_killed(name: str, at: int, world: Material, tmp_path: Path, tally: Tally) -> None:
    write = WRITERS[name]
    if name not in NEW_ONLY:
        write(world, tmp_path, 1)
    before = content_of(tmp_path)
    code = run_and_kill(lambda: write(world, tmp_path, 2), at)
    assert code in (0, KILLED)
    check_whole(tmp_path, before, name)
    make_directory(tmp_path)
    for directory in (path for path in tmp_path.iterdir() if path.is_dir()):
        make_directory(directory)
    assert not unfinished_in(tmp_path)
    if name not in NEW_ONLY or not content_of(tmp_path):
        write(world, tmp_path, 3)
    check_whole(tmp_path, before, name)
    tally("kills", "killed" if code else "done before")


def go_on(
    start: Callable[[], object], moments: random.Random, kills: int, operations: int, tally: Tally
) -> None:
    """Start something again and again, each time killed at another of so many things that it asks of the
    disk; then let it end."""
    for _ in range(kills):
        code = run_and_kill(start, moments.randint(1, operations))
        assert code in (0, KILLED)
        tally("kills", "killed" if code else "done before")
    assert run_and_kill(start) == 0


@pytest.mark.parametrize("seed", range(share(8)))
def test_a_training_that_is_killed(
    seed: int, arguments: Callable[..., RunConfig], tmp_path: Path, tally: Tally
) -> None:
    few = {"num_inference_steps": 3, "images_per_iteration": 3, "retain_rollouts": 3}
    settings = {
        "max_train_iterations": 3,
        "checkpointing_steps": 1,
        "gamma": 0.5,
        "replay_iterations": 1,
        **few,
    }
    out = tmp_path / "out"

    def start() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        again = (
            {"resume_from_checkpoint": "latest"} if list_checkpoints(out) else {"overwrite_output_dir": True}
        )
        script.main(arguments(**settings, **again))

    def whole() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        script.main(arguments(output_dir=tmp_path / "whole", **settings))

    assert run_and_kill(whole) == 0
    go_on(start, random.Random(seed), KILLS, 40, tally)
    assert outcome(out) == outcome(tmp_path / "whole")
    assert not unfinished_in(out)


def found_by(directory: Path) -> dict[str, Any]:
    """What an evaluation found, but for the time, and its images."""
    results = json.loads((directory / "results.json").read_text())
    results.pop("evaluation_seconds")
    images = {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.glob("images/*/*.png")
    }
    return {"results": results, "images": images}


@pytest.mark.parametrize("seed", range(share(4)))
def test_an_evaluation_that_is_killed(
    seed: int, world: Material, tiny_pipeline_dir: Path, tmp_path: Path, tally: Tally
) -> None:
    torch.manual_seed(0)
    domains = {"style": ["Van Gogh", "Mosaic"], "object": ["cat", "car"]}
    Judge(domains, "a {object} image in {style} style", 16, widths=(4, 8)).save_pretrained(tmp_path / "judge")
    save_adapter(tmp_path / "adapter", world.unet, metadata={"concept": '["Van Gogh style"]'})
    line = ["--adapter", tmp_path / "adapter", "--judge_name_or_path", tmp_path / "judge"]
    line += [
        "--pretrained_model_name_or_path",
        tiny_pipeline_dir,
        "--num_inference_steps",
        1,
        "--seeds",
        0,
        1,
    ]

    def start(directory: Path = tmp_path / "out") -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        evaluation.main(evaluation.parse_config([*map(str, line), "--output_dir", str(directory)]))

    assert run_and_kill(lambda: start(tmp_path / "whole")) == 0
    go_on(start, random.Random(seed), KILLS, 30, tally)
    assert found_by(tmp_path / "out") == found_by(tmp_path / "whole")
    assert not unfinished_in(tmp_path / "out")


@pytest.mark.parametrize("seed", range(share(4)))
def test_a_reward_training_that_is_killed(seed: int, tmp_path: Path, tally: Tally) -> None:
    generator = torch.Generator().manual_seed(0)
    data = Latents.without_states(torch.randn(16, 4, 8, 8, generator=generator), torch.ones(16, 8))
    config = DistilConfig(steps=12, batch_size=8, learning_rate=3e-3)
    out = tmp_path / "out"

    def start(directory: Path = out) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        predictor = RewardPredictor(4, 8, 8, width=8, condition_dim=16, origin={"data": "x"})
        resume = "latest" if list_checkpoints(directory) else None
        checkpoints = Checkpointing(directory, every=2, total_limit=2, resume=resume)
        distil(predictor, data, DDIMScheduler(), config, checkpoints=checkpoints)
        predictor.save_pretrained(directory)

    assert run_and_kill(lambda: start(tmp_path / "whole")) == 0
    go_on(start, random.Random(seed), KILLS, 30, tally)
    trained, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert trained.keys() == whole.keys() and all(torch.equal(trained[name], whole[name]) for name in whole)
    assert not unfinished_in(out)
    shutil.rmtree(out)
