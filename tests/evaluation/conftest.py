"""A judge and adapters for the tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from evaluation.judge import Judge
from hub.adapter import save_adapter

DOMAINS = {"style": ["Van Gogh", "Mosaic"], "object": ["cat", "car"]}


@pytest.fixture(scope="session")
def tiny_judge() -> Judge:
    torch.manual_seed(0)
    return Judge(DOMAINS, "a {object} image in {style} style", 16, widths=(4, 8)).eval()


@pytest.fixture(scope="session")
def tiny_judge_dir(tiny_judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("judges") / "tiny-judge"
    tiny_judge.save_pretrained(directory)
    return directory


@pytest.fixture
def adapter_dir(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A random adapter with a header that says what it erases."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    unet.add_adapter(
        LoraConfig(
            r=2, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
        )
    )
    save_adapter(
        tmp_path / "adapter",
        unet,
        metadata={"concept": '["Van Gogh style"]', "base_model_name_or_path": "tiny"},
    )
    return tmp_path / "adapter"
