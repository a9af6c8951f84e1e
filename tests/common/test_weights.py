from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common.weights import (
    HASH_KEY,
    DamagedWeights,
    check_download,
    check_kinds,
    check_values,
    has_its_hashes,
    hashes,
    kinds_in,
    kinds_of,
    weight_files,
)


def test_a_file_that_fits_is_accepted_whatever_its_precision(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    save_file(halves, tmp_path / "a.safetensors")
    check_kinds("It", kinds_of(module), kinds_in(tmp_path / "a.safetensors"))
    check_values("It", module.state_dict())


def test_what_differs_is_named_with_how_many_there_are(tmp_path: Path) -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    save_file({"0.bias": torch.zeros(3), "strange\nname": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DamagedWeights) as caught:
        check_kinds("The part", kinds_of(module), kinds_in(tmp_path / "a.safetensors"))
    message = str(caught.value)
    assert message.startswith("The part lacks 7 of its tensors (0.weight, 1.bias, 1.weight and 4 more)")
    assert "strange name" in message and "(0.bias)" in message and "\n" not in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_no_weight_has_are_refused_in_every_precision(value: float, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(5, 7, dtype=dtype), "b": torch.zeros(0, dtype=dtype), "c": torch.arange(3)}
    check_values("It", tensors)
    tensors["a"][3, 2] = value
    with pytest.raises(DamagedWeights, match=r"\(a\)"):
        check_values("It", tensors)


def test_a_hash_is_that_of_the_tensors_alone(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.zeros(3)}
    said = hashes(tensors)
    save_file(tensors, path)
    assert has_its_hashes(path)
    save_file(tensors, path, {HASH_KEY: said[HASH_KEY].upper().replace("0X", ""), "title": "another"})
    assert has_its_hashes(path)
    save_file(load_file(path) | {"a": torch.zeros(2)}, path, {HASH_KEY: said[HASH_KEY]})
    assert not has_its_hashes(path)


def test_another_name_or_shape_is_another_hash(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"a": torch.ones(2, 3)}
    save_file(tensors, path, hashes(tensors))
    assert has_its_hashes(path)
    for other in ({"b": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}):
        save_file(other, path, hashes(tensors))
        assert not has_its_hashes(path)


def test_a_file_of_the_hubs_cache_is_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    kept = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    kept.write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(kept)
    check_download(tmp_path / "model.safetensors")
    kept.write_bytes(b"weightz")
    with pytest.raises(DamagedWeights, match=str(kept)):
        check_download(tmp_path / "model.safetensors")
    (tmp_path / "blobs" / "0123").write_bytes(b"a small file, which the cache calls otherwise")
    check_download(tmp_path / "blobs" / "0123")


def test_files_are_those_of_a_variant_or_of_none(tmp_path: Path) -> None:
    plain = ["model-00001-of-00002.safetensors", "model.safetensors"]
    halves = ["model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"]
    for name in (*plain, *halves, "model.bin"):
        (tmp_path / name).touch()
    assert [path.name for path in weight_files(tmp_path)] == plain
    assert [path.name for path in weight_files(tmp_path, "fp16")] == halves
