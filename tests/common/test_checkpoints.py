from __future__ import annotations

import subprocess
from collections import deque
from pathlib import Path

import pytest
import torch

from common.checkpoints import (
    entries_of,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    numbered,
    optimizer_tensors,
    save_checkpoint,
)
from critic.critic import Critic
from critic.network import ValueNetwork
from policy.trajectory import Experience, Trajectory

STEPS = 3


def new_critic(seed: int) -> Critic:
    torch.manual_seed(seed)
    return Critic(
        ValueNetwork(4, 8, 6, width=8, condition_dim=16),
        num_prompts=2,
        num_steps=STEPS,
        learning_rate=1e-2,
        buffer_iterations=2,
    )


def batch(seed: int) -> tuple[Trajectory, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `Critic.observe` takes; prompt 1 is never seen."""
    g = torch.Generator().manual_seed(seed)
    latents = torch.randn(5, STEPS + 1, 4, 8, 8, generator=g)
    log_probs = torch.randn(5, STEPS, generator=g)
    trajectory = Trajectory(
        latents,
        latents[:, 1:],
        log_probs,
        torch.tensor([900, 600, 300, 0]),
        torch.zeros(5, dtype=torch.int64),
    )
    return (
        trajectory,
        torch.randn(5, 6, generator=g),
        torch.randn(5, STEPS + 1, generator=g),
        torch.randn(5, STEPS, generator=g),
    )


def trained_critic() -> Critic:
    critic = new_critic(seed=0)
    for seed in range(3):
        critic.observe(*batch(seed))
        critic.fit(3, 8, torch.Generator().manual_seed(seed))
    return critic


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def test_a_critic_comes_back_exactly_with_optimizer_and_buffer(tmp_path: Path) -> None:
    saved = trained_critic()
    save_checkpoint(tmp_path, 3, {"critic": saved.state_dict()}, {}, None)
    loaded = new_critic(seed=1)
    groups, _ = load_checkpoint(tmp_path, "latest")
    loaded.load_state_dict(groups["critic"])
    assert_same(loaded.state_dict(), saved.state_dict())
    assert loaded.seen.tolist() == [True, False]
    assert len(loaded.buffer) == 2 and loaded.buffer.maxlen == 2

    for critic in (saved, loaded):  # and goes on as the other does
        critic.observe(*batch(7))
        critic.fit(4, 8, torch.Generator().manual_seed(7))
    assert_same(loaded.state_dict(), saved.state_dict())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_comes_back_exactly(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    def run(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seeds: range) -> None:
        for seed in seeds:
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    settings = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    first = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    optimizer = kind(first, **settings)
    run(optimizer, first, range(3))
    save_checkpoint(tmp_path, 1, {"optimizer": optimizer_tensors(optimizer)}, {}, None)

    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    other = kind(second, **settings)
    load_optimizer_tensors(other, load_checkpoint(tmp_path, "latest")[0]["optimizer"])
    run(optimizer, first, range(3, 6))
    run(other, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_numbers_tensors_and_names_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    groups = {
        "lora": {"a.b/c": shared, "view": shared[:, 1]},
        "good": {"half": torch.ones(2, dtype=torch.bfloat16), "ids": torch.tensor([2**40])},
    }
    path = save_checkpoint(tmp_path, 7, groups, {"progress": {"images": 3, "why": "é"}, "lr": 1e-3}, None)
    assert path == tmp_path / "checkpoint-7"
    for name in ("latest", "checkpoint-7", str(path)):
        loaded, numbers = load_checkpoint(tmp_path, name)
        assert numbers == {"progress": {"images": 3, "why": "é"}, "lr": 1e-3, "iteration": 7}
        assert loaded.keys() == groups.keys()
        for group in groups:
            assert_same(loaded[group], groups[group])


def save(directory: Path, iteration: int, limit: int | None = None) -> Path:
    return save_checkpoint(
        directory, iteration, {"lora": {"x": torch.full((2,), float(iteration))}}, {}, limit
    )


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "pytorch_lora_weights.safetensors").write_text("not ours")
    for iteration in (2, 8, 9, 10, 11):
        save(tmp_path, iteration, limit=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == [
        "checkpoint-10",
        "checkpoint-11",
    ]  # by number, not by letter
    assert load_checkpoint(tmp_path, "latest")[1]["iteration"] == 11
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["checkpoint-10", "checkpoint-11", "checkpoint-notes", "pytorch_lora_weights.safetensors"]


def test_a_run_that_goes_on_from_an_older_one_keeps_what_it_writes(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        save(tmp_path, iteration)
    for iteration, left in ((2, [1, 2, 3, 4]), (3, [2, 3, 4]), (4, [3, 4])):
        save(tmp_path, iteration, limit=2)
        assert [p.name for p in list_checkpoints(tmp_path)] == [f"checkpoint-{i}" for i in left]


@pytest.mark.parametrize("limit", [None, 0])
def test_no_limit_keeps_them_all(limit: int | None, tmp_path: Path) -> None:
    for iteration in range(1, 5):
        save(tmp_path, iteration, limit)
    assert len(list_checkpoints(tmp_path)) == 4


def test_a_checkpoint_replaces_one_of_its_own_number(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"lora": {"x": torch.zeros(1)}}, {}, 2)
    assert torch.equal(load_checkpoint(tmp_path, "latest")[0]["lora"]["x"], torch.zeros(1))


def test_a_write_that_was_cut_off_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            "common.checkpoints.json.dumps", lambda *a, **k: (_ for _ in ()).throw(OSError("no space left"))
        )
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-1"]
    save(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize(
    "name", ["checkpoint-²", "checkpoint-٣", "checkpoint-", "checkpoint--1", "xcheckpoint-1"]
)
def test_what_only_looks_like_a_number_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    save(tmp_path, 3).rename(tmp_path / name)
    save(tmp_path, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]


def test_no_checkpoint_or_none_of_that_name_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume_from_checkpoint"):
        load_checkpoint(tmp_path, "latest")
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="checkpoint-9"):
        load_checkpoint(tmp_path, "checkpoint-9")


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b"\x00\xff" * 50, "one bit"])
def test_a_damaged_checkpoint_is_a_sentence_and_the_latest_is_the_one_before(
    file: str, content: bytes | str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    if content is None:
        path.unlink()
    elif content == "one bit":
        data = bytearray(path.read_bytes())
        data[-3] ^= 1  # of a number, where the file can still be read
        path.write_bytes(data)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint-2") as caught:
        load_checkpoint(tmp_path, "checkpoint-2")
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path, "latest").numbers["iteration"] == 1
    # Without a manifest there is no checkpoint that anyone would miss.
    assert ("checkpoint-2" in caplog.text) == (path.name != "manifest.json" or content is not None)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        save(disk, 1)
        with pytest.raises(OSError, match=str(disk)):
            save_checkpoint(disk, 2, {"lora": {"x": torch.zeros(100_000)}}, {}, 1)
        assert load_checkpoint(disk, "latest").numbers["iteration"] == 1
        assert [p.name for p in disk.iterdir()] == ["checkpoint-1"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_replayed_experience_comes_back_in_its_order(tmp_path: Path) -> None:
    saved = deque(
        [Experience(batch(seed)[0], torch.randn(5, STEPS), torch.arange(5)) for seed in range(2)], maxlen=3
    )
    tensors = numbered(experience.state_dict() for experience in saved)
    save_checkpoint(tmp_path, 1, {"replay": tensors}, {}, None)
    entries = entries_of(load_checkpoint(tmp_path, "latest").groups["replay"])
    loaded = [Experience.from_state_dict(entry, torch.device("cpu")) for entry in entries]
    assert_same(numbered(experience.state_dict() for experience in loaded), tensors)
    assert entries_of({}) == []
