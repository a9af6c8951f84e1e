"""A trained UNet, what it draws, and what results.json says of it; a Hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from loopback import LoopbackHub
from peft import LoraConfig

import canvas
from hub.adapter import save_adapter
from hub.header import results_header

SETTINGS = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "every kind of layer": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["to_q", "to_out.0", "proj_in", "conv1", "conv_in", "ff.net.2", "time_emb_proj"],
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["to_q", "to_k"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["to_q", "to_k", "to_v"],
        "rank_pattern": {"attn2.to_q": 2},
        "alpha_pattern": {"attn2.to_q": 1.0, "attn1.to_k": 3.0},
    },
}
"""LoRA settings of which none has alpha = rank."""


@pytest.fixture(scope="session")
def lora_settings() -> dict[str, dict[str, Any]]:
    return SETTINGS


@pytest.fixture(scope="session")
def train(tiny_pipeline_dir: Path) -> Callable[..., UNet2DConditionModel]:
    """Makes a UNet with an adapter of which no matrix is zero."""

    def make(**settings: Any) -> UNet2DConditionModel:
        unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
        torch.manual_seed(1)
        unet.add_adapter(LoraConfig(init_lora_weights=False, **settings))
        return unet.eval()

    return make


@pytest.fixture
def trained(train: Callable[..., UNet2DConditionModel]) -> UNet2DConditionModel:
    """A UNet with an adapter whose alpha is not its rank."""
    return train(**SETTINGS["attention"])


@pytest.fixture(params=SETTINGS, scope="session")
def trained_otherwise(
    request: pytest.FixtureRequest, train: Callable[..., UNet2DConditionModel]
) -> UNet2DConditionModel:
    """The same for each of several settings."""
    return train(**SETTINGS[request.param])


@pytest.fixture(scope="session")
def output() -> Callable[[UNet2DConditionModel], torch.Tensor]:
    """What a UNet predicts, (2, 4, 8, 8), for latents and texts that are always the same."""
    generator = torch.Generator().manual_seed(0)
    latents, texts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)

    @torch.no_grad()
    def predict(unet: UNet2DConditionModel) -> torch.Tensor:
        return unet.eval()(latents, 500, texts).sample

    return predict


@pytest.fixture(scope="session")
def base_output(
    tiny_pipeline_dir: Path, output: Callable[[UNet2DConditionModel], torch.Tensor]
) -> torch.Tensor:
    return output(UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet"))


@pytest.fixture(scope="session")
def canvas_adapter_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the bundled pipeline, with what training writes beside it."""
    directory = tmp_path_factory.mktemp("canvas") / "no-van-gogh"
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(canvas.PIPELINE, subfolder="unet")
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["attn2.to_k", "attn2.to_v"])
    )
    results = {
        "concept": ["Van Gogh style"],
        "base_model_name_or_path": "bundled canvas",
        "base": {"UA": 0.0, "IRA": 100.0, "CRA": 97.9},
        "adapter": {"UA": 100.0, "IRA": 99.4, "CRA": None},
        "judge": "bundled canvas judge",
        "num_inference_steps": 6,
        "forget_prompts": [
            f"a {thing} image in Van Gogh style" for thing in ("house", "tree", "fish", "cat")
        ],
        "retain_prompts": [f"a {thing} image in Neon style" for thing in ("house", "tree", "fish", "cat")],
    }
    save_adapter(directory, unet, metadata=results_header(results))
    (directory / "results.json").write_text(json.dumps(results))
    return directory


@pytest.fixture
def results() -> dict[str, Any]:
    """results.json of a run whose settings nobody has cleaned."""
    return {
        "concept": ["Van Gogh style"],
        "base_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "revision": "451f4fe",
        "base": {
            "UA": 0.52,
            "IRA": 99.4,
            "CRA": 98.96,
            "NRA": 98.5,
            "ci95": {"UA": [0.4, 0.7], "IRA": [99.2, 99.6], "CRA": [98.6, 99.2]},
        },
        "adapter": {
            "UA": 97.92,
            "IRA": 98.81,
            "CRA": None,
            "NRA": 95.0,
            "ci95": {"UA": [93.5, 99.4], "IRA": [98.6, 99.0]},
        },
        "seeds": [0, 1, 2],
        "judge": "a judge",
        "settings": {
            "rank": 8,
            "learning_rate": 5e-3,
            "concept": ["Van Gogh style"],
            "output_dir": "/home/someone/run",
            "validation_prompt": ["a cat", "/home/someone/prompt"],
            "hub_token": "hf_secret",
        },
        "versions": {"torch": "2.15.0"},
    }


@pytest.fixture
def loopback_hub(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """The only Hub that huggingface_hub in this process knows; `loopback_hub.environment()` is for other
    processes."""
    with LoopbackHub(tmp_path_factory.mktemp("loopback_hub")) as hub:
        hub.redirect_client(monkeypatch)
        yield hub
