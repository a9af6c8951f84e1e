"""Safetensors files and their headers, configs of networks, training checkpoints, caches: read, or refused
in a sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import DEEP, anything, changed, damaged, file_of, fuzz, put, refused_or_read
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from common.checkpoints import MANIFEST, NUMBERS, TENSORS, load_checkpoint, save_checkpoint
from critic.network import ValueNetwork
from evaluation.judge import Judge
from evaluation.judges import load_judge
from evaluation.shards import Side
from evaluation.weights import read_state
from hub.adapter import read_adapter_metadata
from hub.factors import lora_config
from hub.files import read_file, read_header
from hub.kohya import save_kohya
from hub.provenance import what_adapter_says
from hub.pull import checkpoint_kind
from hub.space.about import read_about
from pipelines.supported import class_of_checkpoint
from reward.latents import Latents, read_shard, write_shard
from reward.predictor import RewardPredictor

ADAPTER = "pytorch_lora_weights.safetensors"
LAYERS = {"unet.a.to_q.lora.down.weight": torch.ones(2, 3), "unet.a.to_q.lora.up.weight": torch.ones(3, 2)}
HEADER = {
    "format": "pt",
    "concept": '["Van Gogh style"]',
    "base_model_name_or_path": "owner/base",
    "lora_adapter_metadata": json.dumps(
        {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {}, "unet.target_modules": ["to_q"]}
    ),
    "results": json.dumps(
        {
            "base": {"UA": 0.0, "IRA": 9.0, "CRA": None},
            "adapter": {"UA": 99.0},
            "judge": "a judge",
            "seeds": [0],
        }
    ),
    "modelspec.architecture": "stable-diffusion-v1/lora",
}
TENSOR_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_everything(path: Path) -> None:
    """All that is ever read of an adapter."""
    refused_or_read("adapter header", read_header, path)
    refused_or_read("adapter", read_file, path)
    header = refused_or_read("adapter header", read_adapter_metadata, path.parent)
    if header is not None:
        refused_or_read("adapter header", lora_config, header)
    refused_or_read("adapter header", what_adapter_says, path.parent)
    refused_or_read("adapter header", read_about, path.parent)
    refused_or_read("adapter", save_kohya, path.parent, path.parent / "kohya.safetensors")
    refused_or_read("checkpoint in one file", class_of_checkpoint, path)
    refused_or_read("classifier", read_state, path)


@fuzz()
@given(content=damaged(save(LAYERS, HEADER)))
def test_damaged_adapters(folder: Path, content: bytes) -> None:
    read_everything(put(folder / ADAPTER, content))


@fuzz()
@given(header=changed(TENSOR_HEADER) | anything(), data=st.binary(max_size=24))
def test_headers_of_any_kind(folder: Path, header: Any, data: bytes) -> None:
    read_everything(put(folder / ADAPTER, file_of(header, data)))


@fuzz()
@given(
    key=st.sampled_from(sorted(HEADER)),
    value=anything().map(json.dumps) | st.text(max_size=20) | st.just(DEEP.decode()),
)
def test_metadata_of_any_kind(folder: Path, key: str, value: str) -> None:
    read_everything(put(folder / ADAPTER, save(LAYERS, HEADER | {key: value})))


@fuzz()
@given(config=changed(json.loads(HEADER["lora_adapter_metadata"])))
def test_adapter_settings_of_any_kind(folder: Path, config: Any) -> None:
    read_everything(
        put(folder / ADAPTER, save(LAYERS, HEADER | {"lora_adapter_metadata": json.dumps(config)}))
    )


NETWORKS = {
    "reward predictor": RewardPredictor(4, 8, 8, width=8, condition_dim=8, prompts=["a"]),
    "critic": ValueNetwork(4, 8, 8, width=8, condition_dim=8),
    "judge": Judge({"style": ["a", "b"]}, "a {style} image", image_size=16, widths=[8, 8]),
}


@pytest.mark.parametrize("kind", NETWORKS)
@fuzz(60)
@given(data=st.data())
def test_configs_of_any_kind(folder: Path, kind: str, data: st.DataObject) -> None:
    """Sizes beyond all memory are refused before any is taken."""
    network, directory = NETWORKS[kind], folder / kind
    shutil.rmtree(directory, ignore_errors=True)
    network.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    content = data.draw(
        (changed(config) | anything()).map(lambda value: json.dumps(value).encode())
        | damaged(json.dumps(config).encode())
    )
    put(directory / "config.json", content)
    refused_or_read("config", load_judge if kind == "judge" else type(network).from_pretrained, directory)
    refused_or_read("config", checkpoint_kind, directory)


@pytest.mark.parametrize("kind", NETWORKS)
@fuzz(40)
@given(data=st.data())
def test_damaged_weights(folder: Path, kind: str, data: st.DataObject) -> None:
    network, directory = NETWORKS[kind], folder / kind
    shutil.rmtree(directory, ignore_errors=True)
    network.save_pretrained(directory)
    path = directory / "model.safetensors"
    put(path, data.draw(damaged(path.read_bytes())))
    refused_or_read("weights", load_judge if kind == "judge" else type(network).from_pretrained, directory)


@pytest.mark.parametrize("kind", NETWORKS)
def test_configs_that_are_nested_or_enormous(tmp_path: Path, kind: str) -> None:
    network = NETWORKS[kind]
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    size = "widths" if kind == "judge" else "width"
    for content in (DEEP, json.dumps(config | {size: [2**20] if kind == "judge" else 2**20}).encode()):
        put(tmp_path / "config.json", content)
        assert (
            refused_or_read(
                "config", load_judge if kind == "judge" else type(network).from_pretrained, tmp_path
            )
            is None
        )


@fuzz(80)
@given(data=st.data(), name=st.sampled_from([MANIFEST, NUMBERS, TENSORS]), sealed=st.booleans())
def test_training_checkpoints(folder: Path, data: st.DataObject, name: str, sealed: bool) -> None:
    """Also where whoever changed a file wrote its hash into the manifest."""
    output_dir = folder / "run"
    shutil.rmtree(output_dir, ignore_errors=True)
    path = save_checkpoint(output_dir, 3, {"lora": {"a": torch.ones(2)}}, {"settings": {"seed": 0}}, None)
    content = (path / name).read_bytes()
    put(
        path / name,
        data.draw(
            damaged(content) | anything().map(lambda value: json.dumps(value).encode()) | st.just(DEEP)
        ),
    )
    if sealed and name != MANIFEST:
        digests = {
            part: hashlib.sha256((path / part).read_bytes()).hexdigest() for part in (TENSORS, NUMBERS)
        }
        put(path / MANIFEST, json.dumps(digests).encode())
    read = refused_or_read("training checkpoint", load_checkpoint, output_dir, path.name)
    assert read is None or sealed or name == MANIFEST or (path / name).read_bytes() == content
    refused_or_read("training checkpoint", load_checkpoint, output_dir, "latest")


@fuzz(80)
@given(data=st.data())
def test_shards_of_the_latent_cache(folder: Path, data: st.DataObject) -> None:
    """A shard is what was written or is made again."""
    path, part = (
        folder / "000000.safetensors",
        Latents.without_states(torch.ones(2, 4, 2, 2), torch.ones(2, 3)),
    )
    path.unlink(missing_ok=True)
    write_shard(path, part)
    content = path.read_bytes()
    put(path, data.draw(damaged(content)))
    read = refused_or_read("latent cache", read_shard, path, False)
    assert read is None or all(torch.equal(value, vars(part)[name]) for name, value in vars(read).items())


@fuzz(80)
@given(
    data=st.data(), name=st.sampled_from(["manifest.json", "shard-00000.json", "seen-00000-k.safetensors"])
)
def test_shards_of_an_evaluation(folder: Path, data: st.DataObject, name: str) -> None:
    directory = folder / "side"
    shutil.rmtree(directory, ignore_errors=True)
    Side(directory, {"steps": 3})
    valid = {
        "manifest.json": (directory / "manifest.json").read_bytes(),
        "shard-00000.json": b'{"00000-seed0.png": "0"}',
    }
    valid["seen-00000-k.safetensors"] = save(
        {"embedding": torch.ones(1, 2)}, {"verdicts": '[{"style": "a"}]'}
    )
    for other, content in valid.items():
        put(directory / other, content)
    put(
        directory / name,
        data.draw(
            damaged(valid[name]) | anything().map(lambda value: json.dumps(value).encode()) | st.just(DEEP)
        ),
    )
    side = refused_or_read("evaluation's shards", Side, directory, {"steps": 3})
    if side is not None:
        refused_or_read("evaluation's shards", side.read_seen, 0, "k")
        assert not refused_or_read("evaluation's shards", side.is_whole, 0, [(0, 0)])


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    """Or the tests above could pass by refusing everything."""
    save_file(LAYERS, tmp_path / ADAPTER, HEADER)
    assert (
        read_about(tmp_path).concepts == ["Van Gogh style"]
        and lora_config(read_adapter_metadata(tmp_path))["r"] == 2
    )
    assert save_kohya(tmp_path, tmp_path / "kohya.safetensors").is_file()
    for kind, network in NETWORKS.items():
        network.save_pretrained(tmp_path / kind)
        assert (
            load_judge(tmp_path / kind) if kind == "judge" else type(network).from_pretrained(tmp_path / kind)
        )
