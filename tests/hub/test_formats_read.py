"""Adapters in every format that is read, where they are converted and merged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hub.adapter import save_adapter
from hub.factors import Factors, NotPairs, adapter_factors
from hub.header import base_header
from hub.kohya import save_kohya
from hub.merge import merge_adapters
from pipelines.base import load_pipeline

TARGETS = ["to_q", "to_out.0", "proj_in", "conv1"]


def update(factors: Factors) -> torch.Tensor:
    return factors.scale * factors.up.flatten(1) @ factors.down.flatten(1)


def assert_same(found: dict[str, Factors], wanted: dict[str, Factors]) -> None:
    assert found.keys() == wanted.keys() and wanted
    for module, factors in wanted.items():
        assert torch.allclose(update(found[module]), update(factors), atol=1e-6), module


@pytest.fixture
def adapter(train: Callable[..., UNet2DConditionModel], tmp_path: Path) -> Path:
    unet = train(r=4, lora_alpha=6, target_modules=TARGETS, alpha_pattern={"conv1": 2.0})
    return save_adapter(tmp_path / "adapter", unet, metadata={"concept": '["cat"]'})


def test_kohyas_file_and_one_of_any_name_hold_the_same(adapter: Path, tmp_path: Path) -> None:
    wanted = adapter_factors(adapter)
    assert {factors.alpha for factors in wanted.values()} == {6.0, 2.0}
    assert_same(adapter_factors(save_kohya(adapter)), wanted)
    other = tmp_path / "other" / "my-eraser.safetensors"
    other.parent.mkdir()
    os.rename(adapter, other)
    assert_same(adapter_factors(save_kohya(other.parent)), wanted)


def test_kohyas_file_of_sdxl_holds_the_same(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    pipe = load_pipeline(pipeline_dirs["sdxl"])
    assert isinstance(pipe, StableDiffusionXLPipeline)
    pipe.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k"], init_lora_weights=False)
    )
    header = base_header(pipe) | {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    path = save_adapter(tmp_path, pipe.unet, metadata=header)
    twin = save_kohya(path)
    assert any("input_blocks" in name for name in load_file(twin))
    assert_same(adapter_factors(twin), adapter_factors(path))


def test_pefts_directory_is_converted_and_merged(
    tiny_pipeline_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    torch.manual_seed(2)
    settings = LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    get_peft_model(unet, settings).save_pretrained(tmp_path / "peft")
    twin = save_kohya(tmp_path / "peft")
    assert_same(adapter_factors(twin), adapter_factors(tmp_path / "peft" / "adapter_model.safetensors"))
    merge_adapters([tmp_path / "peft", save_kohya(adapter)], [1.0, -0.5], tmp_path / "merged")
    merged = adapter_factors(tmp_path / "merged" / adapter.name)
    one, two = adapter_factors(twin), adapter_factors(adapter)
    assert merged.keys() == one.keys()
    for module, factors in merged.items():
        wanted = update(one[module]) - 0.5 * update(two[module])
        assert torch.allclose(update(factors), wanted, atol=1e-5), module


def test_what_is_no_such_adapter_is_named_by_what_it_is(adapter: Path, tmp_path: Path) -> None:
    twin = load_file(save_kohya(adapter))
    module = next(iter(twin)).split(".")[0]
    for number, (tensors, said) in enumerate(
        [
            ({f"{module}.lokr_w1": torch.ones(2, 2)}, "a LoKr"),
            (twin | {f"{module}.dora_scale": torch.ones(2, 1)}, "a DoRA in kohya's format"),
            (
                {name: t for name, t in twin.items() if not name.endswith("lora_up.weight")},
                "diffusers cannot",
            ),
            ({"lora_te3_encoder_block_0.lora_down.weight": torch.ones(2, 4)}, "lora_te3"),
        ]
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(NotPairs, match=rf"{number}\.safetensors cannot be converted or merged.*{said}"):
            adapter_factors(path)
    with pytest.raises(ValueError, match="in kohya's format already"):
        save_kohya(save_kohya(adapter))
