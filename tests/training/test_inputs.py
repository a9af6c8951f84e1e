"""What a run was given counts by content: files, concept images, and the weights of models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.checkpoints import Checkpoint
from pipelines.identity import content_digest, identity
from training.checks import check_same_run, fixed_settings
from training.config import parse_config
from training.inputs import FILES, describe_inputs, what_differs


def test_a_directory_is_told_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.safetensors").write_bytes(b"weights")
        (tmp_path / name / "notes.txt").write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert content_digest(a) != content_digest(b)
    assert content_digest(a, ".safetensors") == content_digest(b, ".safetensors")
    assert identity(a) == identity(b)  # weights alone decide
    (b / "sub" / "x.safetensors").rename(b / "sub" / "y.safetensors")
    assert identity(a) != identity(b)


def test_a_hub_id_is_told_by_the_commit_that_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = tmp_path / "snapshots" / commit / "model_index.json"
    monkeypatch.setattr(
        "pipelines.identity.try_to_load_from_cache",
        lambda repo, name, revision=None: str(found) if (repo, revision) == ("owner/base", "v1") else None,
    )
    assert identity("owner/base", "v1") == f"commit {commit}"
    assert identity("owner/other") == "unknown"


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_other_content_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    if name == "concept_images":
        path.mkdir()
        (path / "image.png").write_bytes(b"one")
    else:
        path.write_text("a cat\n")
    config = parse_config(["--concept", "cat", f"--{name}", str(path)])
    then = describe_inputs(config)
    assert what_differs(then, describe_inputs(config)) == []
    (path / "image.png" if path.is_dir() else path).write_bytes(b"another")
    now = describe_inputs(config)
    assert [name in text for text in what_differs(then, now)] == [True]
    with pytest.raises(ValueError, match=f"--{name}"):
        check_same_run(
            config, Checkpoint({"lora": {}}, {"settings": fixed_settings(config), "inputs": then}), now
        )


def test_a_file_that_moved_is_the_same(tmp_path: Path) -> None:
    described = []
    for name in ("here.txt", "there.txt"):
        (tmp_path / name).write_text("a cat\n")
        config = parse_config(["--concept", "cat", "--forget_prompts", str(tmp_path / name)])
        described.append(describe_inputs(config))
    assert described[0] == described[1] and what_differs(*described) == []


def test_a_base_of_other_weights_is_named(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_pipeline_dir, base)
    config = parse_config(["--concept", "cat", "--pretrained_model_name_or_path", str(base)])
    then = describe_inputs(config)
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"] = torch.nextafter(weights["conv_in.bias"], torch.tensor(torch.inf))
    save_file(weights, path)
    (changed,) = what_differs(then, describe_inputs(config))
    assert "--pretrained_model_name_or_path" in changed
