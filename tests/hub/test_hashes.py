"""An adapter or a network is what was written, wherever it is read, pulled or pushed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from loopback import LoopbackHub
from safetensors.torch import load_file, save_file

from common.network import CheckpointError
from common.weights import HASH_KEY
from critic.network import ValueNetwork
from hub.adapter import find_adapter, save_adapter, update_adapter_metadata
from hub.factors import adapter_factors
from hub.files import UnreadableAdapter, read_file, read_header
from hub.kohya import save_kohya
from hub.pull import pull
from hub.push import push_adapter

REPO = "someone/adapter"
WEIGHTS = "pytorch_lora_weights.safetensors"


def change(path: Path, header: dict[str, str] | None = None) -> None:
    """Another value of a tensor, under the same header or another."""
    tensors, said = load_file(path), read_header(path)
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, said if header is None else header)


@pytest.fixture
def adapter(trained: UNet2DConditionModel, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", trained, metadata={"method": "a test"})


READERS: dict[str, Callable[[Path], Any]] = {
    "load, evaluate, fuse, show": read_file,
    "merge": adapter_factors,
    "convert": lambda path: save_kohya(path, path.with_name("other.safetensors")),
    "write anew": lambda path: update_adapter_metadata(path.parent, {"modelspec.title": "another"}),
    "push": lambda path: push_adapter(path.parent, REPO),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_adapter_of_ours_that_has_changed_is_refused(
    reader: str, adapter: Path, loopback_hub: LoopbackHub
) -> None:
    change(adapter)
    changed = adapter.read_bytes()
    with pytest.raises(UnreadableAdapter, match=str(adapter)):
        READERS[reader](adapter)
    assert adapter.read_bytes() == changed and [adapter] == list(adapter.parent.iterdir())


@pytest.mark.parametrize("hashed", [True, False])
def test_one_of_others_is_read_with_a_warning_and_one_without_a_hash_without(
    hashed: bool, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(adapter, {HASH_KEY: read_header(adapter)[HASH_KEY]} if hashed else {})
    read_file(adapter)
    assert (str(adapter) in caplog.text) == hashed


def corrupt(hub: LoopbackHub, content: bytes) -> None:
    """Serve other bytes of the same length in place of these."""
    found = [path for path in hub.store.blobs.directory.iterdir() if path.read_bytes() == content]
    assert len(found) == 1
    found[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_download_that_is_not_what_the_hub_declares_is_refused(
    adapter: Path, loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    """Also where the file carries no hash of its own."""
    save_file(load_file(adapter), adapter)
    ValueNetwork(4, 8, 16, width=8, condition_dim=16).save_pretrained(tmp_path / "critic")
    for name, directory in ((REPO, adapter.parent), ("someone/critic", tmp_path / "critic")):
        loopback_hub.api().create_repo(name)
        loopback_hub.api().upload_folder(repo_id=name, folder_path=directory)
    corrupt(loopback_hub, adapter.read_bytes())
    corrupt(loopback_hub, (tmp_path / "critic" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is not the file that the Hub declares"):
        pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that the Hub declares"):
        ValueNetwork.from_pretrained("someone/critic")
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is not the file that the Hub declares"):
        find_adapter(REPO)


def test_an_old_network_without_a_hash_still_loads(tmp_path: Path) -> None:
    network = ValueNetwork(4, 8, 16, width=8, condition_dim=16)
    network.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert torch.equal(
        ValueNetwork.from_pretrained(tmp_path).state_dict()["time.weight"],
        network.state_dict()["time.weight"],
    )
