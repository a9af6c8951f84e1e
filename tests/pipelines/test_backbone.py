"""Of every backbone: what the UNet is told, what rollouts draw and what latents look like is what the
stock pipeline does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from tiny_pipelines import save_sd1, save_sdxl

from pipelines.backbone import Backbone, usual_batch_size
from pipelines.base import load_pipeline
from pipelines.conditioning import Conditioning
from policy.kernel import ReverseKernel
from policy.lora import add_lora, base_policy
from policy.policy import Policy
from policy.trajectory import Trajectory

PROMPTS = ["a cat", "a tree image in Van Gogh style", "été"]
STEPS = 4


@pytest.fixture(scope="module")
def backbone(backbone_dir: Path) -> Backbone:
    return Backbone.of(load_pipeline(backbone_dir))


@pytest.fixture(scope="module")
def xl(pipeline_dirs: dict[str, Path]) -> Backbone:
    return Backbone.of(load_pipeline(pipeline_dirs["sdxl"]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8, 8), 64),
        ((32, 32), 32),
        ((64, 64), 8),
        ((96, 96), 3),
        ((128, 128), 2),
        ((64, 128), 4),
        ((512, 512), 1),
    ],
    ids=str,
)
def test_larger_latents_go_through_the_unet_in_smaller_batches(size: tuple[int, int], expected: int) -> None:
    assert usual_batch_size((4, *size)) == expected


def stock(backbone: Backbone) -> DiffusionPipeline:
    """The base's own pipeline, under DDIM of its own noise schedule."""
    pipe = backbone.pipe
    components = dict(pipe.components) | {
        "scheduler": DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    }
    kept = {
        name: pipe.config[name]
        for name in ("force_zeros_for_empty_prompt", "requires_safety_checker")
        if name in pipe.config
    }
    made = type(pipe)(**components, **kept)
    made.set_progress_bar_config(disable=True)
    return made


def calls(
    unet: torch.nn.Module, draw: Callable[[], Any]
) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """What the UNet was told in each call of `draw`: text states, and what it takes beside them."""
    heard = []

    def hear(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        heard.append((states, kwargs.get("added_cond_kwargs") or {}))

    handle = unet.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        draw()
    finally:
        handle.remove()
    return heard


def drawn(backbone: Backbone, prompts: list[str], guidance: float, min_std: float = 0.0) -> torch.Tensor:
    kernel = ReverseKernel.from_scheduler(backbone.pipe.scheduler, STEPS, min_std=min_std)
    policy = Policy(backbone, kernel, backbone.prompt_table(prompts), guidance, batch_size=64)
    return policy.rollout(torch.arange(len(prompts)), torch.Generator().manual_seed(0)).latents[:, -1]


def drawn_by_stock(
    backbone: Backbone, prompts: list[str], guidance: float, output_type: str = "latent", **settings: Any
) -> torch.Tensor:
    height, width = backbone.image_size
    generator = torch.Generator().manual_seed(0)
    settings = {
        "guidance_scale": guidance,
        "num_inference_steps": STEPS,
        "eta": 1.0,
        "height": height,
        "width": width,
    } | settings
    return stock(backbone)(prompts, generator=generator, output_type=output_type, **settings).images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_unet_is_told_what_the_stock_pipeline_tells_it(backbone: Backbone, guidance: float) -> None:
    ours = calls(backbone.denoiser, lambda: drawn(backbone, PROMPTS, guidance))
    theirs = calls(backbone.denoiser, lambda: drawn_by_stock(backbone, PROMPTS, guidance))
    assert len(ours) == len(theirs) == STEPS
    for (states, added), (expected, expected_added) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
        assert added.keys() == expected_added.keys() - {"image_embeds"}
        for name, tensor in added.items():
            torch.testing.assert_close(tensor, expected_added[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_rollout_is_stochastic_ddim_of_the_stock_pipeline(backbone: Backbone, guidance: float) -> None:
    """The same noise in the same order, step for step until the finished latent."""
    ours, theirs = drawn(backbone, PROMPTS, guidance), drawn_by_stock(backbone, PROMPTS, guidance)
    assert ours.shape == theirs.shape and ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert (ours - drawn(backbone, PROMPTS[::-1], guidance)).abs().max() > 1e-2  # the prompt matters at all


def test_latents_are_decoded_as_the_pipeline_does_and_encoded_back(backbone: Backbone) -> None:
    latents = drawn_by_stock(backbone, PROMPTS, 3.0)
    images = drawn_by_stock(backbone, PROMPTS, 3.0, output_type="pt")
    pixels = backbone.decode(latents, batch_size=2)
    assert pixels.shape == (3, 3, 16, 16) and pixels.abs().max() <= 1
    torch.testing.assert_close((pixels + 1) / 2, images, atol=1e-4, rtol=0)
    scaled = backbone.vae.encode(pixels).latent_dist.mode() * backbone.vae.config.scaling_factor
    torch.testing.assert_close(backbone.encode_images(pixels), scaled.detach())


@pytest.mark.parametrize(("pixels", "most"), [(16 * 16, 1), (16 * 16 + 1, 3)])
def test_large_images_are_decoded_one_by_one(
    backbone: Backbone, pixels: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = drawn_by_stock(backbone, PROMPTS, 3.0)
    together = backbone.decode(latents)
    seen, decode = [], backbone.vae.decoder.forward
    monkeypatch.setattr(
        backbone.vae.decoder, "forward", lambda z, *rest: seen.append(len(z)) or decode(z, *rest)
    )
    monkeypatch.setattr("pipelines.backbone.SLICED", pixels)
    backbone.decode_one_by_one()
    try:
        torch.testing.assert_close(backbone.decode(latents), together, atol=1e-5, rtol=0)
    finally:
        backbone.vae.disable_slicing()
    assert max(seen) == most and sum(seen) == 3


def test_encoding_in_batches_changes_nothing(backbone: Backbone) -> None:
    together, apart = backbone.encode_prompts(PROMPTS), backbone.encode_prompts(PROMPTS, batch_size=2)
    for name, tensor in vars(together).items():
        assert (tensor is None) == (getattr(apart, name) is None)
        if tensor is not None:
            assert len(tensor) == 3 and not tensor.requires_grad
            torch.testing.assert_close(getattr(apart, name), tensor, atol=1e-5, rtol=1e-5)
    assert backbone.prompt_table(PROMPTS).pooled.shape == (3, together.vector.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recomputed_log_probs_are_the_stored_ones_bit_for_bit(backbone_dir: Path, dtype: torch.dtype) -> None:
    """The ratio of the first update is exactly 1, with an adapter that has moved, and the base is found
    again beneath it."""
    backbone = Backbone.of(load_pipeline(backbone_dir, dtype=dtype))
    kernel = ReverseKernel.from_scheduler(backbone.pipe.scheduler, STEPS)
    policy = Policy(backbone, kernel, backbone.prompt_table(PROMPTS), guidance_scale=5.0, batch_size=4)
    rows = torch.tensor([0, 2, 1, 0])

    def roll_out() -> Trajectory:
        return policy.rollout(rows, torch.Generator().manual_seed(0))

    # As beneath an adapter: where a weight may need a gradient torch's Linear sums in another order.
    backbone.denoiser.requires_grad_(False)
    base = roll_out()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in add_lora(backbone.denoiser, 2, 2.0, ["attn2.to_q", "attn2.to_v"]):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    trajectory = roll_out()
    assert not torch.equal(trajectory.latents[:, 1], base.latents[:, 1])
    for step in range(STEPS):
        mean = policy.mean(trajectory.latents[:, step], step, policy.table.conditioning[rows])
        log_prob = kernel.log_prob(trajectory.latents[:, step + 1], mean, step)
        assert log_prob.requires_grad and torch.equal(log_prob.detach(), trajectory.log_probs[:, step])
    with base_policy(backbone.denoiser):
        again = roll_out()
    assert torch.equal(again.latents, base.latents)


def test_a_text_fits_up_to_the_last_token_of_every_tokenizer(
    backbone: Backbone, xl: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = backbone.pipe.tokenizer
    window = tokenizer.model_max_length
    words = next(n for n in range(1, 100) if len(tokenizer("a " * n, truncation=False).input_ids) == window)
    backbone.check_window("a " * words)
    with pytest.raises(ValueError, match=rf"\b{window + 1}\b.*\b{window}\b"):
        backbone.check_window("a " * (words + 1))
    with pytest.raises(ValueError) as caught:
        backbone.check_window("word " * 1000)
    assert len(str(caught.value)) < 250
    with pytest.raises(ValueError):
        backbone.encode_prompts(["a cat", "word " * 1000])
    monkeypatch.setattr(xl.pipe.tokenizer_2, "model_max_length", 3)
    with pytest.raises(ValueError, match=r"\b3\b"):
        xl.check_window("a cat in a tree")


def test_the_words_that_no_encoder_sees_are_told(
    backbone: Backbone, xl: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = backbone.pipe.tokenizer
    words = next(n for n in range(1, 100) if backbone.unseen("a " * n)) - 1
    backbone.check_window("a " * words)
    assert backbone.unseen("a cat") == "" and backbone.unseen("a " * words + "cat") == "cat"
    assert backbone.unseen("a " * (words + 1) + "in Van Gogh style").endswith("in van gogh style")
    seen = tokenizer("a " * words + "cat", truncation=True, max_length=tokenizer.model_max_length).input_ids
    assert tokenizer("cat").input_ids[1] not in seen
    monkeypatch.setattr(xl.pipe.tokenizer_2, "model_max_length", 4)
    end = xl.unseen("a cat in a tree")
    assert end.endswith("in a tree") and not end.startswith("a cat")


# --- SDXL alone
# -------------------------------------------------------------------------------------------------


def test_xl_is_told_the_size_of_its_images_and_one_pooled_embedding(xl: Backbone) -> None:
    told = xl.encode_prompts(PROMPTS)
    assert told.states.shape == (3, 32, 16 + 24) and told.pooled.shape == (3, 20)
    assert told.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    assert torch.equal(told.vector, told.pooled)


def test_xl_without_a_prompt_is_zeros_or_the_empty_prompt_as_its_config_says(
    xl: Backbone, tmp_path: Path
) -> None:
    nothing = xl.encode_no_prompt()
    assert (
        len(nothing) == 1 and not nothing.states.any() and not nothing.pooled.any() and nothing.time_ids.any()
    )
    save_sdxl(tmp_path, force_zeros_for_empty_prompt=False)
    other = Backbone.of(load_pipeline(tmp_path))
    nothing, empty = other.encode_no_prompt(), other.encode_prompts([""])
    assert (
        nothing.states.any()
        and torch.equal(nothing.states, empty.states)
        and torch.equal(nothing.pooled, empty.pooled)
    )
    torch.testing.assert_close(
        drawn(other, PROMPTS, 5.0), drawn_by_stock(other, PROMPTS, 5.0), atol=1e-3, rtol=1e-3
    )


def test_xl_decodes_in_float32_where_float16_would_overflow(pipeline_dirs: dict[str, Path]) -> None:
    backbone = Backbone.of(load_pipeline(pipeline_dirs["sdxl"]))
    latents = drawn_by_stock(backbone, PROMPTS, 3.0)
    with torch.no_grad():
        backbone.vae.decoder.mid_block.resnets[
            0
        ].conv1.weight *= 1e6  # beyond float16 behind this layer, and normalised away behind the next
        backbone.vae.decoder.mid_block.resnets[0].conv1.weight.clamp_(-6e4, 6e4)
    backbone.vae.to(torch.float16)
    weights = {name: tensor.clone() for name, tensor in backbone.vae.state_dict().items()}
    pixels = backbone.decode(latents)
    assert pixels.isfinite().all() and pixels.dtype == torch.float32
    images = drawn_by_stock(backbone, PROMPTS, 3.0, output_type="pt")
    torch.testing.assert_close((pixels + 1) / 2, images, atol=1e-2, rtol=0)
    assert backbone.encode_images(pixels).isfinite().all()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.vae.state_dict().items())
    backbone.vae.register_to_config(force_upcast=False)
    assert not backbone.decode(latents).isfinite().all()


def test_xl_honours_the_statistics_of_its_latents(pipeline_dirs: dict[str, Path]) -> None:
    backbone = Backbone.of(load_pipeline(pipeline_dirs["sdxl"]))
    backbone.vae.register_to_config(latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[2.0, 1.5, 1.0, 0.5])
    latents = drawn_by_stock(backbone, PROMPTS, 3.0)
    pixels = backbone.decode(latents)
    torch.testing.assert_close(
        (pixels + 1) / 2, drawn_by_stock(backbone, PROMPTS, 3.0, output_type="pt"), atol=1e-4, rtol=0
    )
    encoded = backbone.encode_images(pixels)
    raw = backbone.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(backbone._unscale(encoded), raw.detach(), atol=1e-4, rtol=1e-4)


# --- sizes, rows
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_sd1, save_sdxl])
def test_latents_need_not_be_square(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path, latent_size=(8, 12))
    backbone = Backbone.of(load_pipeline(tmp_path))
    assert backbone.latent_shape == (4, 8, 12) and backbone.image_size == (16, 24)
    ours = drawn(backbone, PROMPTS, 5.0)
    assert ours.shape == (3, 4, 8, 12) and backbone.decode(ours).shape == (3, 3, 16, 24)
    torch.testing.assert_close(ours, drawn_by_stock(backbone, PROMPTS, 5.0), atol=1e-3, rtol=1e-3)


def test_conditionings_keep_their_rows_together() -> None:
    lengths = torch.tensor([1, 2, 2])
    whole = Conditioning(torch.randn(3, 2, 4), torch.randn(3, 5), torch.arange(18.0).view(3, 6), lengths)
    picked = whole[torch.tensor([2, 0])]
    joined = Conditioning.cat([picked, whole[1:2]])
    order = torch.tensor([2, 0, 1])
    for name, tensor in vars(whole).items():
        assert torch.equal(getattr(joined, name), tensor[order])
        assert torch.equal(
            getattr(whole[1:2].expand(4), name), tensor[1:2].repeat(4, *[1] * (tensor.ndim - 1))
        )
    half = whole.to(torch.bfloat16)
    assert {half.states.dtype, half.pooled.dtype, half.time_ids.dtype} == {torch.bfloat16}
    assert half.lengths is lengths
    assert whole.added.keys() == {"text_embeds", "time_ids"} and Conditioning(whole.states).added is None
    torch.testing.assert_close(Conditioning(whole.states).vector, whole.states.mean(dim=1))
    own = Conditioning(whole.states, lengths=lengths)
    assert [len(states) for states in own.own_states] == [1, 2, 2]
    torch.testing.assert_close(own.vector[0], whole.states[0, 0])
