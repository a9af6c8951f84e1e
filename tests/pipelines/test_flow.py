"""Of every flow-matching transformer: what our kernel draws without noise is what its pipeline draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import FLOWS

from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base, load_pipeline
from pipelines.generate import draw, evaluation_mode
from pipelines.noise import NoiseSchedule
from policy.kernel import ReverseKernel
from policy.lora import add_lora, base_policy
from policy.policy import Policy

PROMPTS, STEPS, GUIDANCE = ["a cat", "two dogs in a forest"], 4, 3.5


@pytest.fixture(scope="module", params=FLOWS)
def backbone(request: pytest.FixtureRequest, flow_dirs: dict[str, Path]) -> Backbone:
    return Backbone.of(load_base(BaseConfig(str(flow_dirs[request.param]), resolution=16)))


def policy_of(backbone: Backbone, eta: float, guidance: float = GUIDANCE) -> Policy:
    kernel = ReverseKernel.of(backbone, STEPS, eta, min_std=0.0)
    return Policy(backbone, kernel, backbone.prompt_table(PROMPTS), guidance, batch_size=2)


def by_stock(backbone: Backbone, guidance: float) -> torch.Tensor:
    """(2, C, h, w): finished latents of the pipeline's own call."""
    with evaluation_mode(backbone.pipe):
        return backbone.draw_latents(
            PROMPTS,
            torch.Generator().manual_seed(0),
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            stochastic=False,
        )


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
@torch.no_grad()
def test_without_noise_it_draws_what_the_stock_pipeline_draws(backbone: Backbone, guidance: float) -> None:
    policy = policy_of(backbone, 1e-6, guidance)
    # The pipelines draw the noise of a batch at once.
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    for step in range(STEPS):
        x = policy.mean(x, step, policy.table.conditioning)
    torch.testing.assert_close(x, by_stock(backbone, guidance), atol=1e-4, rtol=1e-4)


def test_guidance_decides(backbone: Backbone) -> None:
    assert (by_stock(backbone, 1.0) - by_stock(backbone, 6.0)).abs().max() > 1e-3


def test_a_rollout_scores_its_own_steps_and_an_adapter_is_switched_off_bit_for_bit(
    flow_dirs: dict[str, Path],
) -> None:
    for directory in (flow_dirs[name] for name in FLOWS):
        backbone = Backbone.of(load_base(BaseConfig(str(directory), resolution=16)))
        policy = policy_of(backbone, 1.0)
        ids = torch.arange(2)
        before = policy.rollout(ids, torch.Generator().manual_seed(1))
        parameters = add_lora(backbone.denoiser, 2, 2, backbone.lora_targets)
        trained = {name: p for name, p in backbone.denoiser.named_parameters() if p.requires_grad}
        same = policy.rollout(ids, torch.Generator().manual_seed(1))
        assert torch.equal(same.latents, before.latents)
        for p in parameters:
            p.data += 0.3
        moved = policy.rollout(ids, torch.Generator().manual_seed(1))
        assert (moved.latents - before.latents).abs().max() > 1e-4
        mean = policy.mean(moved.latents[:, 1], 1, policy.table.conditioning)
        assert torch.equal(policy.kernel.log_prob(moved.latents[:, 2], mean, 1), moved.log_probs[:, 1])
        mean.sum().backward()
        left = {name for name, p in trained.items() if p.grad is None or not p.grad.any()}
        last = len(getattr(backbone.denoiser, "transformer_blocks", ())) - 1
        assert all(name.startswith(f"transformer_blocks.{last}.attn.add_q_proj") for name in left), left
        with base_policy(backbone.denoiser):
            again = policy.rollout(ids, torch.Generator().manual_seed(1))
        assert torch.equal(again.latents, before.latents)


def test_stochastic_samples_are_others(backbone: Backbone) -> None:
    def sample(stochastic: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return backbone.draw_latents(
            PROMPTS, generator, num_inference_steps=STEPS, guidance_scale=1.0, stochastic=stochastic
        )

    assert torch.equal(sample(False), sample(False)) and torch.equal(sample(True), sample(True))
    assert (sample(True) - sample(False)).abs().max() > 0.1


def test_images_have_the_size_that_is_asked(backbone: Backbone) -> None:
    assert backbone.image_size == (16, 16)
    with evaluation_mode(backbone.pipe):
        assert draw(backbone.pipe, [("a cat", 0)], num_inference_steps=2)[0].size == (16, 16)


def test_images_and_latents_are_each_others(backbone: Backbone) -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = backbone.encode_images(pixels)
    assert latents.shape == (2, *backbone.latent_shape)
    mode = backbone.vae.encode(pixels).latent_dist.mode()
    config = backbone.vae.config
    torch.testing.assert_close(latents, (mode - config.shift_factor) * config.scaling_factor)
    torch.testing.assert_close(backbone.decode(latents), backbone.vae.decode(mode).sample.clamp(-1, 1))


def test_what_it_is_trained_to_say_is_noise_without_the_image(backbone: Backbone) -> None:
    schedule = NoiseSchedule.of(backbone.pipe.scheduler)
    x0, noise = (torch.randn(3, *backbone.latent_shape) for _ in range(2))
    t = torch.tensor([0, 400, 1000])
    noisy = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(noisy[1], 0.6 * x0[1] + 0.4 * noise[1])
    assert torch.equal(noisy[0], x0[0]) and torch.equal(noisy[2], noise[2])
    assert torch.equal(schedule.target(x0, noise, t), noise - x0)


def test_a_prompt_is_refused_only_where_t5_cuts_it_off(backbone: Backbone) -> None:
    t5 = len(backbone.readers) == 1
    long = "a cat " * 40
    if t5 and backbone.readers[0].model_max_length >= 240:
        backbone.check_window(long)
    else:
        with pytest.raises(ValueError, match="tokens"):
            backbone.check_window(long)
    with pytest.raises(ValueError, match="tokens"):
        backbone.check_window("a cat " * 400)


def test_t5_can_be_left_out_of_stable_diffusion_3(flow_dirs: dict[str, Path]) -> None:
    with_t5 = load_pipeline(flow_dirs["sd3"])
    without = load_pipeline(flow_dirs["sd3"], without_t5=True)
    assert with_t5.text_encoder_3 is not None and without.text_encoder_3 is None
    states = [Backbone.of(pipe).encode_prompts(["a cat"]).states for pipe in (with_t5, without)]
    assert states[0].shape == states[1].shape and not torch.equal(*states)
    for kind in ("flux", "sd1"):
        with pytest.raises(ValueError, match="--without_t5"):
            load_pipeline(flow_dirs[kind], without_t5=True)


@pytest.mark.parametrize(("kind", "together"), [("sd1", [12]), ("flux", [9, 3])])
def test_long_texts_are_encoded_a_few_at_a_time(
    kind: str, together: list[int], flow_dirs: dict[str, Path]
) -> None:
    backbone, seen = Backbone.of(load_pipeline(flow_dirs[kind])), []
    backbone.text_encoders[-1].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    backbone.encode_prompts(["a cat"] * 12)
    assert seen == together


def changed(directory: Path, to: Path, change: dict[str, object]) -> Path:
    """A copy of a pipeline with another model_index.json."""
    shutil.copytree(directory, to)
    index = json.loads((to / "model_index.json").read_text()) | change
    (to / "model_index.json").write_text(json.dumps(index))
    return to


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"scheduler": ["diffusers", "DDIMScheduler"]},
            "DDIMScheduler.*needs a FlowMatchEulerDiscreteScheduler",
        ),
        ({"text_encoder_2": [None, None]}, "without a text_encoder_2"),
        ({"transformer": ["diffusers", "HunyuanDiT2DModel"]}, "HunyuanDiT2DModel"),
        ({"controlnet": ["diffusers", "SD3ControlNetModel"]}, "controlnet"),
    ],
)
def test_what_is_no_such_flow_is_refused(
    change: dict[str, object], said: str, flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        load_pipeline(changed(flow_dirs["sd3"], tmp_path / "base", change))


@pytest.mark.parametrize("said", ({"quant_method": "gguf"}, {"quant_method": "quanto"}, {}, []))
@pytest.mark.parametrize("kind", ["sd3", "sd1"])
def test_a_network_that_is_quantised_already_is_refused(
    said: object, kind: str, flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    base = changed(flow_dirs[kind], tmp_path / "base", {})
    config = base / ("unet" if kind == "sd1" else "transformer") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": said}))
    with pytest.raises(ValueError, match=r"quantised already.*--load_in_4bit"):
        load_pipeline(base)


def test_a_text_encoder_that_needs_another_package_is_refused(
    flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    base = changed(flow_dirs["sd3"], tmp_path / "base", {})
    config = base / "text_encoder_3" / "config.json"
    found = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "quanto"}}
    config.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="quanto"):
        load_pipeline(base)


def test_noise_on_the_way_does_not_depend_on_the_batch(flow_dirs: dict[str, Path]) -> None:
    pipe = load_pipeline(flow_dirs["sd3"])
    pipe.scheduler = Backbone.of(pipe).noisy_sampler(1.0)
    jobs = [("a cat", seed) for seed in range(3)]
    together, apart = (
        [np.asarray(image, int) for image in draw(pipe, jobs, num_inference_steps=3, batch_size=size)]
        for size in (3, 2)
    )
    assert np.abs(np.stack(together) - np.stack(apart)).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_a_flow_predicts_nothing_else(flow_dirs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="--prediction_type"):
        load_pipeline(flow_dirs["flux"], prediction_type="epsilon")


def test_the_pipelines_own_sampler_is_put_back(backbone: Backbone) -> None:
    own = backbone.pipe.scheduler
    with evaluation_mode(backbone.pipe):
        assert backbone.pipe.scheduler is not own
    assert backbone.pipe.scheduler is own
