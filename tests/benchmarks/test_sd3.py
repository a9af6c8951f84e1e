"""The small Stable Diffusion 3 of the canvas: what its training leaves out, and what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import canvas
from benchmarks.canvas import CanvasConfig, training
from benchmarks.sd3.__main__ import TRAIN, base_flags
from benchmarks.worlds import sd3
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import generate
from training.config import parse_config

PROMPTS = ["a cat in Neon style", "", "a boat in Van Gogh style"]


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    pipe = sd3.build_pipeline(load_pipeline(canvas.PIPELINE).vae, 8)
    for parameter in pipe.transformer.parameters():
        if not parameter.any():  # a new transformer's outputs are zero
            nn.init.normal_(parameter, std=0.1)
    return Backbone.of(pipe)


@torch.no_grad()
def test_tokens_that_are_all_zeros_count_as_often_as_there_are(backbone: Backbone) -> None:
    x, sigma = torch.randn(3, *backbone.latent_shape), torch.tensor([0.1, 0.5, 0.9])
    told = backbone.encode(PROMPTS)
    whole = backbone.output(x, 1000 * sigma, told, 1.0)
    with sd3.zeros_once():
        short = backbone.output(x, 1000 * sigma, told, 1.0)
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-5)
    once = replace(told, states=told.states[:, : sd3.models.TEXT_LENGTH + 1])
    assert (backbone.output(x, 1000 * sigma, once, 1.0) - whole).abs().max() > 1e-3
    assert torch.equal(backbone.output(x, 1000 * sigma, told, 1.0), whole)


def test_a_short_training_moves_every_network_and_is_drawn_with(backbone: Backbone, tmp_path: Path) -> None:
    networks = sd3.networks(backbone.pipe)
    before = [[p.clone() for p in network.parameters()] for network in networks]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, *backbone.latent_shape, generator=generator)
    sd3.train(
        backbone.pipe,
        (latents, torch.zeros_like(latents)),
        lambda index, _: [PROMPTS[i % 3] for i in index.tolist()],
        steps=2,
        state_dir=tmp_path,
        seed=0,
    )
    for network, parameters in zip(networks, before, strict=True):
        assert any(
            not torch.equal(a, b.detach()) for a, b in zip(parameters, network.parameters(), strict=True)
        )
    backbone.pipe.save_pretrained(tmp_path / "pipeline")
    drawn = list(generate(load_pipeline(tmp_path / "pipeline"), PROMPTS[:1], [0], progress="drawing"))
    assert [image.size for _, _, image in drawn] == [(32, 32)]


def test_a_pipeline_is_made_of_networks_that_are_there(backbone: Backbone, tmp_path: Path) -> None:
    networks = sd3.networks(backbone.pipe)
    save_file(
        {name: sd3.half(value) for name, value in networks.state_dict().items()}, tmp_path / sd3.NETWORKS
    )
    given = [
        "--output_dir",
        str(tmp_path),
        "--networks",
        str(tmp_path / sd3.NETWORKS),
        "--stages",
        "pipeline",
    ]
    sd3.main(sd3.parse_config(given))
    made = sd3.networks(load_pipeline(tmp_path / "pipeline")).state_dict()
    for name, value in networks.state_dict().items():
        assert torch.equal(made[name], sd3.half(value).to(value.dtype)), name


def test_erasures_draw_judge_and_learn_at_the_guidance_of_the_base(tmp_path: Path) -> None:
    runs = CanvasConfig(output_dir=tmp_path)
    job = training("cat", 0, runs, [*base_flags(tmp_path / "world"), "--rank", "4"], TRAIN)
    assert tuple(job.arguments[:2]) == TRAIN
    config = parse_config(list(job.arguments[2:]))
    assert config.base.pretrained_model_name_or_path == str(tmp_path / "world" / "pipeline")
    assert config.environment.guidance_scale == config.validation.validation_guidance_scale == sd3.GUIDANCE
    assert config.adapter.rank == 4
