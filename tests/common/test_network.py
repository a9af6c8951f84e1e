from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.network import CheckpointError
from critic.network import ValueNetwork
from reward.predictor import RewardPredictor


def predictor() -> RewardPredictor:
    torch.manual_seed(0)
    return RewardPredictor(
        4, 8, 12, width=8, condition_dim=16, clip_model="hf-hub:some/clip", prompts=["a café", "a tree"]
    )


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    saved = predictor()
    saved.save_pretrained(tmp_path / "new" / "reward")
    loaded = RewardPredictor.from_pretrained(tmp_path / "new" / "reward")
    assert loaded.config == saved.config
    assert not loaded.training
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in saved.state_dict().items())
    assert sorted(p.name for p in (tmp_path / "new" / "reward").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.skipif(os.name == "nt", reason="no modes")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        predictor().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o640, 0o640]


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    saved = predictor()
    saved.save_pretrained(tmp_path / "full")
    saved.save_pretrained(tmp_path / "half", dtype=torch.float16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.65 * full
    loaded = RewardPredictor.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(
        torch.equal(p, q.half().float()) for p, q in zip(loaded.parameters(), saved.parameters(), strict=True)
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | changes))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return edit


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated weights": lambda d: truncate(d / "model.safetensors"),
    "empty weights": lambda d: (d / "model.safetensors").write_bytes(b""),
    "weights are noise": lambda d: (d / "model.safetensors").write_bytes(b"\x93" * 4000),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "a tensor too many": edit_weights(lambda t: t.update(extra=torch.zeros(1))),
    "a tensor too few": edit_weights(lambda t: t.pop(next(iter(t)))),
    "a tensor of another shape": edit_weights(lambda t: t.update({"trunk.stem.bias": torch.zeros(3)})),
    "truncated config": lambda d: truncate(d / "config.json"),
    "no config": lambda d: (d / "config.json").unlink(),
    "config is no object": lambda d: (d / "config.json").write_text("[1, 2]"),
    "config is binary": lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
    "another kind": edit_config(kind="critic"),
    "no kind": edit_config(kind=None),
    "an unknown setting": edit_config(magic=1),
    "another width": edit_config(width=16),
    "a width no norm takes": edit_config(width=9),
    "a width of the wrong type": edit_config(width="wide"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_in_one_sentence(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    directory = tmp_path / "reward"
    predictor().save_pretrained(directory)
    damage(directory)
    with pytest.raises(CheckpointError) as caught:
        RewardPredictor.from_pretrained(directory)
    message = str(caught.value)
    assert str(directory) in message and "reward predictor" in message
    assert "\n" not in message and len(message) < 400


def test_the_other_kind_is_named(tmp_path: Path) -> None:
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"critic.*reward predictor"):
        RewardPredictor.from_pretrained(tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent/reward"):
        RewardPredictor.from_pretrained(tmp_path / "absent" / "reward")


def test_a_checkpoint_is_complete_or_the_old_one(tmp_path: Path) -> None:
    """A save that fails half-way leaves a directory that still loads."""
    old = predictor()
    old.save_pretrained(tmp_path)
    broken = predictor()
    broken.config = broken.config | {"prompts": [object()]}  # cannot be written as JSON
    with torch.no_grad():
        for p in broken.parameters():
            p += 1
    with pytest.raises(TypeError):
        broken.save_pretrained(tmp_path)
    loaded = RewardPredictor.from_pretrained(tmp_path)
    assert loaded.config == old.config
    assert torch.equal(loaded.head[-1].weight, old.head[-1].weight)
