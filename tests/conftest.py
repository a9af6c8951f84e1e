"""Fixtures shared by all tests: random pipelines small enough to draw in milliseconds, and reward
predictors for them. And the rule by which a test belongs to the slow tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from finished_runs import Finished
from tiny_pipelines import BACKBONES, FLOWS, TINY_PROMPTS, save_sd1
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

import canvas
from evaluation.examination import Examination
from pipelines.generate import generate
from policy.policy import Policy
from policy.update import UpdateStats
from reward.predictor import RewardPredictor
from training.config import RunConfig, parse_config

torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
# Progress bars share a lock with forked processes: one that a test kills while it holds it stops all others.
TqdmDefaultWriteLock.mp_lock, tqdm.monitor_interval = None, 0


def save_random_reward(directory: Path, latent_size: int) -> None:
    """A reward predictor of random weights that speaks the bundled CLIP's embeddings."""
    torch.manual_seed(1)
    RewardPredictor(4, latent_size, 64, width=8, condition_dim=16, prompts=TINY_PROMPTS).save_pretrained(
        directory
    )


QUICK = {
    "num_inference_steps": 4,
    "train_batch_size": 4,
    "images_per_iteration": 6,
    "max_train_iterations": 2,
    "cooldown_updates": 0,
    "gradient_accumulation_steps": 1,
    "masked_steps": 1,
    "rank": 2,
    "retain_rollouts": 6,
    "retain_batch_size": 3,
    "warmup_rollouts": 6,
    "critic_warmup_steps": 3,
    "critic_steps": 3,
    "critic_batch_size": 16,
    "critic_buffer_iterations": 2,
    "validation_steps": 0,
    "num_validation_images": 2,
    "evaluation_seeds": None,
    "checkpointing_steps": 0,
    "report_to": "none",
    # The loop alone, from the base on.
    "no-train_text_encoder": True,
    "num_vocabulary_prompts": 0,
    # Random pictures are neither forgotten nor retained: nothing stops or is undone unless a test says so.
    "target_unlearning_accuracy": 1.1,
    "max_retain_drop": 10.0,
    "max_retain_kl": 1e9,
}
"""Flags of the training script under which a run takes seconds."""


SLOW_FOLDERS = {"attack", "fuzz", "probes", "whole"}
"""Folders of tests that take seconds each: kills and full disks, hostile inputs by the hundred, attacks on an
erasure, and commands from their first file to their last."""
SLOW_FIXTURES = {
    "pipeline_dirs": "a pipeline of each backbone",
    "command_line": "a run of the training script",
    "arguments": "the same",
    "finished": "the same, or a comparison of several",
    "new_task": "a baseline that trains",
    "on_flow": "the same, on a transformer",
    "line": "its whole command",
    "small_world": "adapters that are composed",
}
"""What a test asks for that takes seconds each."""
SLOW_HELPERS = {"chromium", "served", "two_processes"}
"""Modules that start other programs: a file that imports one is slow."""


@cache
def starts_programs(module: ModuleType) -> bool:
    """Whether a file of tests has imported something from one of SLOW_HELPERS."""
    imported = [value for value in vars(module).values() if isinstance(value, FunctionType | type)]
    return any(value.__module__ in SLOW_HELPERS for value in imported)


def is_slow(item: pytest.Item) -> bool:
    """Whether a test belongs to the slow tier, by where it lies, what it asks for, and whether it starts a
    program."""
    if not isinstance(item, pytest.Function):
        return False
    folders = item.path.relative_to(Path(__file__).parent).parts[:-1]
    return (
        not SLOW_FOLDERS.isdisjoint(folders)
        or not SLOW_FIXTURES.keys().isdisjoint(item.fixturenames)
        or starts_programs(item.module)
        or "subprocess" in item.function.__code__.co_names
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate remembers device and precision for the whole process; one test's choice must not be the
    next one's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="session")
def few_drawing_steps() -> Iterator[None]:
    """Previews and final metrics take two denoising steps unless a test says how many: images of a random
    base are as good after two as after the default's thirty. `test_main_job.py` takes the default."""
    with pytest.MonkeyPatch.context() as patch:
        set_drawing_steps(2, patch)
        yield


@pytest.fixture
def draw_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as ship."""
    set_drawing_steps(30, monkeypatch)


def set_drawing_steps(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Change the default number of denoising steps of images that are looked at or judged."""
    patch.setitem(generate.__kwdefaults__, "num_inference_steps", steps)
    patch.setattr(Examination, "num_inference_steps", steps)


@pytest.fixture(scope="session")
def tiny_prompts() -> list[str]:
    return TINY_PROMPTS


@pytest.fixture(scope="session")
def flow_dirs(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_dir: Path) -> dict[str, Path]:
    """A tiny pipeline of each class of flow-matching transformers; and one that is none, "sd1"."""
    made = {"sd1": tiny_pipeline_dir}
    for name, save in FLOWS.items():
        made[name] = tmp_path_factory.mktemp(name)
        save(made[name])
    return made


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 x 16 images, 4 x 8 x 8 latents, text of width 16."""
    directory = tmp_path_factory.mktemp("pipeline")
    save_sd1(directory)
    return directory


@pytest.fixture(scope="session")
def pipeline_dirs(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_dir: Path) -> dict[str, Path]:
    """A pipeline of each backbone, all of 4 x 8 x 8 latents, so that `tiny_reward_dir` is for any of them."""
    made = {"sd1": tiny_pipeline_dir}
    for name, save in BACKBONES.items():
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save(made[name])
    return made


@pytest.fixture(scope="session", params=BACKBONES)
def backbone_dir(request: pytest.FixtureRequest, pipeline_dirs: dict[str, Path]) -> Path:
    """The pipelines of all backbones in turn."""
    return pipeline_dirs[request.param]


@pytest.fixture(scope="session")
def tiny_reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward predictor for the latents of `tiny_pipeline_dir`."""
    directory = tmp_path_factory.mktemp("reward")
    save_random_reward(directory, latent_size=8)
    return directory


@pytest.fixture(scope="session")
def wide_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another world: 32 x 32 images, 4 x 16 x 16 latents, text of width 24."""
    directory = tmp_path_factory.mktemp("wide_pipeline")
    save_sd1(directory, latent_size=16, text_width=24)
    return directory


@pytest.fixture(scope="session")
def wide_reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward predictor for the latents of `wide_pipeline_dir`."""
    directory = tmp_path_factory.mktemp("wide_reward")
    save_random_reward(directory, latent_size=16)
    return directory


def quick_line(named: dict[str, Any], changes: dict[str, Any]) -> list[str]:
    """The command line of a quick run; a list is several values, None none, True a flag, False leaves the
    argument out."""
    line: list[str] = []
    known = {"concept": "Van Gogh style", "clip_model": f"local-dir:{canvas.CLIP}"}
    for name, value in (known | named | QUICK | changes).items():
        if value is False:
            continue
        line.append(f"--{name}")
        if value is not None and value is not True:
            line += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return line


@pytest.fixture
def command_line(tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a quick run into tmp_path / "out", with changes as `quick_line` takes them."""
    named = {
        "pretrained_model_name_or_path": tiny_pipeline_dir,
        "reward_model_name_or_path": tiny_reward_dir,
        "output_dir": tmp_path / "out",
    }
    return lambda **changes: quick_line(named, changes)


@pytest.fixture
def arguments(command_line: Callable[..., list[str]]) -> Callable[..., RunConfig]:
    """Its settings."""
    return lambda **changes: parse_config(command_line(**changes))


@pytest.fixture(scope="session")
def finished(
    tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Finished]:
    """The finished run of a command line, by the changes that `command_line` takes; made once a session. To
    be asked for before a test patches anything."""
    made: dict[str, Finished] = {}

    def run(**changes: Any) -> Finished:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = finish(changes)
        return made[key]

    def finish(changes: dict[str, Any]) -> Finished:
        import train_unlearn_lora as script

        finished, update = Finished(tmp_path_factory.mktemp("finished")), Policy.update

        def recorded(policy: Policy, *given: Any, **named: Any) -> UpdateStats:
            finished.rates.append(named["optimizer"].param_groups[0]["lr"])
            finished.updates.append(update(policy, *given, **named))
            return finished.updates[-1]

        named = {
            "pretrained_model_name_or_path": tiny_pipeline_dir,
            "reward_model_name_or_path": tiny_reward_dir,
            "output_dir": finished.directory,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Policy, "update", recorded)
            AcceleratorState._reset_state(reset_partial_state=True)
            script.main(parse_config(quick_line(named, changes)))
        AcceleratorState._reset_state(reset_partial_state=True)
        return finished

    return run
