"""Fixtures shared by all tests: random pipelines small enough to draw in milliseconds, and reward predictors for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_pipelines import BACKBONES, TINY_PROMPTS, save_sd1

from reward.predictor import RewardPredictor

torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another


def save_random_reward(directory: Path, latent_size: int) -> None:
    """A reward predictor of random weights that speaks the bundled CLIP's embeddings."""
    torch.manual_seed(1)
    RewardPredictor(4, latent_size, 64, width=8, condition_dim=16, prompts=TINY_PROMPTS).save_pretrained(directory)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate remembers device and precision for the whole process; one test's choice must not be the next one's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_prompts() -> list[str]:
    return TINY_PROMPTS


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
