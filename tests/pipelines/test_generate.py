"""Images depend on prompt and seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from peft import LoraConfig
from PIL import Image

from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import adapter_disabled, evaluation_mode, generate
from pipelines.supported import Unsupported

PROMPTS = ["a cat", "a boat", "a house in mosaic style"]


def draw(pipe, prompts: list[str], seeds: list[int], **kwargs) -> dict[tuple[str, int], np.ndarray]:
    images = generate(pipe, prompts, seeds, num_inference_steps=3, **kwargs)
    return {(prompts[i], seed): np.asarray(image, dtype=int) for i, seed, image in images}


def assert_same(one: dict, other: dict) -> None:
    for key in one.keys() & other.keys():
        assert np.abs(one[key] - other[key]).max() <= 1, key  # rounding to 8 bits after sums in another order


def test_an_image_is_independent_of_its_batch_and_of_the_list(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    together = draw(pipe, PROMPTS, [0, 1], batch_size=64)
    assert len(together) == 6
    assert_same(together, draw(pipe, PROMPTS, [0, 1], batch_size=2))
    assert_same(together, draw(pipe, PROMPTS[::-1], [1]))
    assert not np.array_equal(together["a cat", 0], together["a cat", 1])
    assert not np.array_equal(together["a cat", 0], together["a boat", 0])


def test_as_many_are_drawn_at_a_time_as_their_latents_are_large(
    tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted are the UNet's batches; its attention over 64 x 64 latents would take long."""
    pipe, sizes = load_pipeline(tiny_pipeline_dir), []
    pipe.unet.register_to_config(sample_size=64)  # Stable Diffusion 1.5's

    def counted(x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        sizes.append(len(x))
        return (x,)

    monkeypatch.setattr(pipe.unet, "forward", counted)
    assert len(
        list(generate(pipe, ["a cat"], range(9), num_inference_steps=1, guidance_scale=1.0))
    ) == 9 and sizes == [8, 1]


def test_order_is_seed_after_seed(tiny_pipeline_dir: Path) -> None:
    jobs = [
        (i, seed)
        for i, seed, _ in generate(
            load_pipeline(tiny_pipeline_dir), PROMPTS[:2], [5, 3], num_inference_steps=1, batch_size=3
        )
    ]
    assert jobs == [(0, 5), (1, 5), (0, 3), (1, 3)]


def test_guidance_defaults_to_the_pipelines_own(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    default = draw(pipe, PROMPTS[:1], [0])
    assert_same(default, draw(pipe, PROMPTS[:1], [0], guidance_scale=7.5))
    assert not np.array_equal(
        default["a cat", 0], draw(pipe, PROMPTS[:1], [0], guidance_scale=1.0)["a cat", 0]
    )


def test_adapter_disabled_is_the_base_and_leaves_training_as_it_was(tiny_pipeline_dir: Path) -> None:
    base = draw(load_pipeline(tiny_pipeline_dir), PROMPTS, [0])
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    pipe.text_encoder.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "fc1"]))
    pipe.text_encoder.requires_grad_(False)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    trainable = {(part, n): p.requires_grad for part, m in parts.items() for n, p in m.named_parameters()}
    with adapter_disabled(pipe):
        disabled = draw(pipe, PROMPTS, [0])
    assert all(np.array_equal(base[key], disabled[key]) for key in base)
    assert trainable == {
        (part, n): p.requires_grad for part, m in parts.items() for n, p in m.named_parameters()
    }
    adapted = draw(pipe, PROMPTS, [0])
    assert any(not np.array_equal(base[key], adapted[key]) for key in base)


def test_evaluation_mode_restores_the_pipeline(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.scheduler = scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.unet.train()
    with pytest.raises(KeyError), evaluation_mode(pipe):
        assert isinstance(pipe.scheduler, DDIMScheduler)
        assert not pipe.unet.training
        raise KeyError
    assert pipe.scheduler is scheduler
    assert pipe.unet.training


def test_ddim_clips_latents_only_if_the_pipeline_does(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    assert Backbone.of(pipe).deterministic_sampler().config.clip_sample is False
    pipe.scheduler = DDIMScheduler(clip_sample=True)
    assert Backbone.of(pipe).deterministic_sampler().config.clip_sample is True


def test_a_directory_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}'
    )
    with pytest.raises(Unsupported, match="unet"):
        load_pipeline(tmp_path)


def test_generate_yields_pil_images(tiny_pipeline_dir: Path) -> None:
    _, _, image = next(generate(load_pipeline(tiny_pipeline_dir), ["a cat"], [0], num_inference_steps=1))
    assert isinstance(image, Image.Image)
    assert image.size == (16, 16)
