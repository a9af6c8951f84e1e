from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from small_policy import TARGETS

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning, PromptTable
from policy.kernel import ReverseKernel
from policy.lora import add_lora
from policy.policy import Policy


@pytest.fixture
def unet(tiny_pipeline_dir: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")


@pytest.fixture
def policy(unet: UNet2DConditionModel, tiny_pipeline_dir: Path) -> Policy:
    torch.manual_seed(0)
    add_lora(unet, 4, 4, TARGETS)
    kernel = ReverseKernel.from_scheduler(
        DDIMScheduler.from_pretrained(tiny_pipeline_dir, subfolder="scheduler"), 5
    )
    table = PromptTable(
        ["one", "two", "three"],
        *map(Conditioning, (torch.randn(3, 7, 16), torch.randn(1, 7, 16))),
        torch.tensor([True, True, False]),
    )
    return Policy(Backbone(SimpleNamespace(unet=unet)), kernel, table, guidance_scale=5.0, batch_size=64)
