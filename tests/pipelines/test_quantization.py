"""The quantised base on a CPU, by the layers that a GPU would run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from diffusers import BitsAndBytesConfig, DDIMScheduler, UNet2DConditionModel
from small_policy import TARGETS
from tiny_pipelines import random_unet

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning, PromptTable
from pipelines.quantization import quantize
from policy.kernel import ReverseKernel
from policy.lora import add_lora, base_policy
from policy.policy import Policy
from policy.trajectory import Experience
from policy.update import UpdateConfig

CONFIGS = {
    "8 bits": {"load_in_8bit": True},
    "NF4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "FP4, doubly": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
}
CPU = torch.device("cpu")


def wide_unet() -> UNet2DConditionModel:
    """Linear layers of 64 to 512 features: as wide as a block of bitsandbytes, and wider."""
    torch.manual_seed(0)
    return random_unet(8, 64, block_out_channels=(64, 128), norm_num_groups=8).eval().requires_grad_(False)


@torch.no_grad()
def predict(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, states = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 7, 64, generator=generator)
    return unet(x.to(unet.dtype), 500, states.to(unet.dtype)).sample.float()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_quantised_unet_predicts_nearly_the_same_from_far_fewer_bytes(
    config: dict[str, object], dtype: torch.dtype
) -> None:
    unet = wide_unet().to(dtype)
    before, expected = unet.get_memory_footprint(), predict(unet)
    linear = sum(type(module) is torch.nn.Linear for module in unet.modules())
    quantize(unet, BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **config), CPU)
    kinds = [type(module) for module in unet.modules() if isinstance(module, torch.nn.Linear)]
    assert linear == len(kinds) > 20 and set(kinds) == {
        Linear4bit if config.get("load_in_4bit") else Linear8bitLt
    }
    assert unet.dtype == dtype and unet.get_memory_footprint() < 0.9 * before
    error = (predict(unet) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < (0.15 if config.get("load_in_4bit") else 0.03)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_an_adapter_learns_on_it_and_disabled_leaves_it_bit_for_bit(
    config: dict[str, object], tiny_pipeline_dir: Path
) -> None:
    unet = wide_unet()
    quantize(unet, BitsAndBytesConfig(**config), CPU)
    base = predict(unet)
    parameters = add_lora(unet, 4, 4, TARGETS)
    assert {p.dtype for p in parameters} == {torch.float32} and torch.equal(predict(unet), base)
    kernel = ReverseKernel.from_scheduler(
        DDIMScheduler.from_pretrained(tiny_pipeline_dir, subfolder="scheduler"), 5
    )
    table = PromptTable(
        ["one", "two"],
        *map(Conditioning, (torch.randn(2, 7, 64), torch.randn(1, 7, 64))),
        torch.tensor([True, False]),
    )
    policy = Policy(Backbone(SimpleNamespace(unet=unet)), kernel, table, guidance_scale=5.0, batch_size=3)
    trajectory = policy.rollout(torch.tensor([0, 0, 0]), torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.Adam(parameters, lr=2e-2))
    experience = Experience(trajectory, torch.zeros(3, 5), torch.ones(3, dtype=torch.int64))
    kls, worst, deviations = [], [], []
    settings = UpdateConfig(
        kl_coef=0.0,
        target_kl=float("inf"),
        retain_batch_size=1,
        gradient_accumulation_steps=4,
        train_timestep_fraction=1.0,
        masked_steps=1,
    )
    for _ in range(4):
        stats = policy.update(
            [experience],
            trajectory,
            optimizer=optimizer,
            accelerator=accelerator,
            config=settings,
            generator=torch.Generator().manual_seed(0),
        )
        kls += stats.anchor_kl
        worst += stats.worst_anchor_kl
        deviations.append(stats.first_ratio_deviation)
    assert deviations[0] == 0.0  # with gradient and without the layers do the same
    assert kls[0] > 0 and kls[-1] < 0.9 * kls[0]
    assert worst[0] > kls[0] and worst[-1] < worst[0]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert (predict(unet) - base).abs().max() > 1e-4
    with base_policy(unet):
        assert torch.equal(predict(unet), base)


def test_modules_can_be_left_as_they_are() -> None:
    unet = wide_unet()
    config = BitsAndBytesConfig(
        load_in_4bit=True, llm_int8_skip_modules=["time_embedding", "down_blocks.0.attentions.0.proj_in"]
    )
    quantize(unet, config, CPU)
    assert type(unet.time_embedding.linear_1) is torch.nn.Linear and isinstance(
        unet.down_blocks[0].resnets[0].time_emb_proj, Linear4bit
    )


def test_the_unets_of_every_class_can_be_quantised(backbone_dir: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(backbone_dir, subfolder="unet")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantize(unet, config, CPU)
    linear = [module for module in unet.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(isinstance(module, Linear4bit) for module in linear)
    assert all(p.requires_grad for p in add_lora(unet, 2, 2, TARGETS))
