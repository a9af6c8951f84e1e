"""Where models from the Hub are kept, and doing without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from loopback import LoopbackHub

import canvas
from common.network import CheckpointError
from pipelines.base import BaseConfig, load_base, with_downloads
from reward.predictor import RewardPredictor
from training.config import RunConfig, parse_config

BASE, REWARD = "someone/base", "someone/reward"


@pytest.fixture
def base(tiny_pipeline_dir: Path, loopback_hub: LoopbackHub, tmp_path: Path) -> BaseConfig:
    """On the Hub, to be kept in a directory of its own."""
    for name, directory in ((BASE, tiny_pipeline_dir), (REWARD, canvas.REWARD)):
        loopback_hub.api().create_repo(name)
        loopback_hub.api().upload_folder(repo_id=name, folder_path=directory)
    return BaseConfig(BASE, cache_dir=tmp_path / "mine")


def test_everything_is_kept_where_it_is_told_and_found_there_again(
    base: BaseConfig, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    usual = Path(constants.HF_HUB_CACHE)
    before = sorted(usual.iterdir()) if usual.is_dir() else []
    with base.downloads():
        fetched, predictor = load_base(base), RewardPredictor.from_pretrained(REWARD)
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {
        "models--someone--base",
        "models--someone--reward",
    }
    assert (sorted(usual.iterdir()) if usual.is_dir() else []) == before
    asked = len(loopback_hub.sent(""))
    local = replace(base, local_files_only=True)
    with local.downloads():
        again, same = load_base(local), RewardPredictor.from_pretrained(REWARD)
    assert len(loopback_hub.sent("")) == asked, "nothing was asked for"
    for one, other in ((fetched.unet, again.unet), (predictor, same)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_what_is_not_there_is_said_in_a_sentence(base: BaseConfig, tmp_path: Path) -> None:
    empty = replace(base, cache_dir=tmp_path / "empty", local_files_only=True)
    with empty.downloads(), pytest.raises(ValueError, match=BASE) as caught:
        load_base(empty)
    assert "\n" not in str(caught.value)
    with empty.downloads(), pytest.raises(CheckpointError, match=REWARD):
        RewardPredictor.from_pretrained(REWARD)


def test_the_clients_own_settings_come_back(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    before = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE

    @with_downloads
    def command(config: RunConfig) -> None:
        seen.append((constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE))
        raise ValueError("failed")

    config = parse_config(["--concept", "cat", "--cache_dir", str(tmp_path), "--local_files_only"])
    with pytest.raises(ValueError, match="failed"):
        command(config)
    assert seen == [(str(tmp_path), True)]
    assert before == (constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE)
