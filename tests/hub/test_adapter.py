"""An adapter file restores what was trained, and the base once it is scaled to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

from hub.adapter import read_adapter_metadata, save_adapter

HEADER = {"concept": '["Van Gogh style"]', "base_model_name_or_path": "bundled canvas"}


def inputs() -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 8, 8, generator=generator), 500, torch.randn(2, 7, 16, generator=generator)


@torch.no_grad()
def output(unet: UNet2DConditionModel) -> torch.Tensor:
    return unet.eval()(*inputs()).sample


@pytest.fixture
def trained(tiny_pipeline_dir: Path) -> UNet2DConditionModel:
    """A UNet with an adapter whose alpha is not its rank and whose B matrices are not zero."""
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return unet


def test_round_trip_through_a_stock_pipeline(trained: UNet2DConditionModel, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    base = output(UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet"))
    expected = output(trained)
    assert (expected - base).abs().max() > 1e-3

    save_adapter(tmp_path, trained, "default", HEADER)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)

    name = pipe.get_active_adapters()[0]
    pipe.set_adapters(name, 0.0)
    assert torch.equal(output(pipe.unet), base)
    pipe.set_adapters(name, 1.0)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.unet), base)


def test_every_kind_of_layer_is_restored(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_out.0", "proj_in", "conv_in", "ff.net.2"]))
    save_adapter(tmp_path, unet)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipe.unet), output(unet), atol=1e-5, rtol=0)


def test_header(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, "default", HEADER)
    header = read_adapter_metadata(tmp_path)
    assert {key: header[key] for key in HEADER} == HEADER
    lora = header["lora_adapter_metadata"]
    assert (lora["unet.r"], lora["unet.lora_alpha"]) == (4, 8)
    assert set(lora["unet.target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert lora.keys() <= {f"unet.{name}" for name in ("r", "lora_alpha", "target_modules", "init_lora_weights")}  # older peft knows no others


def test_only_the_file_is_left(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained)
    save_adapter(tmp_path, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]


def test_a_failed_write_keeps_the_old_file(trained: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save_adapter(tmp_path, trained).read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("hub.adapter.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_adapter(tmp_path, trained, metadata={"concept": "another"})
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_errors(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter named 'absent'"):
        save_adapter(tmp_path, trained, "absent")
    with pytest.raises(ValueError, match="belongs to diffusers"):
        save_adapter(tmp_path, trained, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not an adapter"):
        read_adapter_metadata(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not an adapter"):
        read_adapter_metadata(tmp_path)
