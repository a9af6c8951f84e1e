"""An adapter file restores what was trained, and the base once it is scaled to nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from environment.base import load_pipeline
from hub.adapter import read_adapter_metadata, save_adapter, update_adapter_metadata
from hub.files import read_file

Output = Callable[[UNet2DConditionModel], torch.Tensor]
NAME = "pytorch_lora_weights.safetensors"
HEADER = {"concept": '["Van Gogh style"]', "base_model_name_or_path": "bundled canvas"}


def test_round_trip_through_a_stock_pipeline(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, base_output: torch.Tensor, tmp_path: Path
) -> None:
    expected = output(trained)
    assert (expected - base_output).abs().max() > 1e-3

    save_adapter(tmp_path, trained, "default", HEADER)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)

    name = pipe.get_active_adapters()[0]
    pipe.set_adapters(name, 0.0)
    assert torch.equal(output(pipe.unet), base_output)
    pipe.set_adapters(name, 1.0)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.unet), base_output)


def test_every_kind_of_adapter_is_restored(
    trained_otherwise: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, base_output: torch.Tensor, tmp_path: Path
) -> None:
    save_adapter(tmp_path, trained_otherwise)
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.load_lora_weights(tmp_path)
    assert (output(trained_otherwise) - base_output).abs().max() > 1e-3
    assert (output(pipe.unet) - output(trained_otherwise)).abs().max() <= 1e-5


# --- the header -----------------------------------------------------------------------------------------


def test_header(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, "default", HEADER)
    header = read_adapter_metadata(tmp_path)
    assert {key: header[key] for key in HEADER} == HEADER
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", header["modelspec.date"])
    lora = header["lora_adapter_metadata"]
    assert (lora["unet.r"], lora["unet.lora_alpha"]) == (4, 8)
    assert set(lora["unet.target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert lora.keys() <= {f"unet.{name}" for name in ("r", "lora_alpha", "target_modules", "init_lora_weights")}  # older peft knows no others


def test_the_hash_is_that_of_all_bytes_after_the_header(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    content = save_adapter(tmp_path, trained).read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert len(tensors) == sum(t.numel() * 4 for t in load_file(tmp_path / NAME).values())
    assert read_adapter_metadata(tmp_path)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(tensors).hexdigest()


def test_the_header_is_rewritten_and_the_tensors_stay(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, "default", HEADER)
    before = {name: read_file(tmp_path / name) for name in (NAME,)}
    update_adapter_metadata(tmp_path, {"concept": '["cat"]', "results": "{}"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)
    for name, (tensors, header) in before.items():
        again, changed = read_file(tmp_path / name)
        assert changed == header | {"concept": '["cat"]', "results": "{}"}
        assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_only_the_file_is_left(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained)
    save_adapter(tmp_path, trained)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(("step", "error"), [("save_file", OSError("no space left")), ("os.replace", KeyboardInterrupt())])
def test_an_interrupted_write_keeps_the_old_file(
    step: str, error: BaseException, trained: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save_adapter(tmp_path, trained).read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(f"hub.files.{step}", fail)
    for write in (lambda: save_adapter(tmp_path, trained, metadata={"concept": "another"}), lambda: update_adapter_metadata(tmp_path, HEADER)):
        with pytest.raises(type(error)):
            write()
        assert (tmp_path / NAME).read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1


def test_errors(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter named 'absent'"):
        save_adapter(tmp_path, trained, "absent")
    for taken in ("format", "lora_adapter_metadata", "modelspec.hash_sha256"):
        with pytest.raises(ValueError, match="made with the tensors"):
            save_adapter(tmp_path, trained, metadata={taken: "pt"})
        with pytest.raises(ValueError, match="made with the tensors"):
            update_adapter_metadata(tmp_path, {taken: "pt"})
    with pytest.raises(ValueError, match="is not an adapter"):
        read_adapter_metadata(tmp_path)
    with pytest.raises(ValueError, match="is not an adapter"):
        update_adapter_metadata(tmp_path, {})
    (tmp_path / NAME).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not an adapter"):
        read_adapter_metadata(tmp_path)
