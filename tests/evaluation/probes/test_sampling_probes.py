"""Probes that train nothing: what they hand to the sampler and the stock pipelines is what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DDIMScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from evaluation.examination import JudgeExamination
from evaluation.judge import Judge, to_pixels
from evaluation.probes import completion, image_to_image, inpainting, noise
from evaluation.probes.beginnings import beginnings, made_of
from evaluation.probes.inpainting import mask_of
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline

ETAS = (0.5, 1.0, 1.7, 100.0)


def noise_after(scheduler: DDIMScheduler, timestep: torch.Tensor, eta: float) -> float:
    """The standard deviation of the state after a step from pure noise of a black image, of which the model
    predicts exactly that."""
    alpha, generator = scheduler.alphas_cumprod[timestep], torch.Generator().manual_seed(0)
    epsilon = torch.randn(200_000, generator=generator)
    predicted = epsilon if scheduler.config.prediction_type == "epsilon" else alpha.sqrt() * epsilon
    sample = (1 - alpha).sqrt() * epsilon
    return scheduler.step(predicted, timestep, sample, eta=eta, generator=generator).prev_sample.std().item()


@pytest.mark.parametrize("eta", ETAS)
def test_whatever_the_eta_a_state_is_as_noisy_as_the_model_was_trained_on(
    eta: float, backbone_dir: Path
) -> None:
    scheduler = noise.noisy(load_pipeline(backbone_dir), eta)
    scheduler.set_timesteps(6)
    for timestep in scheduler.timesteps:
        following = timestep - scheduler.config.num_train_timesteps // 6  # as diffusers counts
        alpha = scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod
        found = noise_after(scheduler, timestep, eta=1.0)
        assert found == pytest.approx((1 - alpha).sqrt().item(), rel=0.02, abs=1e-3)


def test_up_to_ancestral_sampling_it_is_the_stock_sampler_and_beyond_that_one_fails(
    subject: Subject,
) -> None:
    stock = Backbone.of(subject.pipe).deterministic_sampler()
    stock.set_timesteps(6)
    for eta in ETAS:
        scheduler = noise.noisy(subject.pipe, eta)
        scheduler.set_timesteps(6)
        expected = [noise_after(stock, timestep, eta) for timestep in stock.timesteps]
        found = [noise_after(scheduler, timestep, 1.0) for timestep in scheduler.timesteps]
        if eta <= 1:
            assert found == pytest.approx(expected, rel=1e-3)
        else:
            assert np.isnan(expected).any() and np.isfinite(found).all()


def test_every_eta_draws_something_else(subject: Subject, few: Settings) -> None:
    rows = noise.run(subject, dataclasses.replace(few, noise_etas=(0.001, 1.0, 5.0)))
    assert (
        len({row.after[0].tobytes() for row in rows}) == len({row.before[0].tobytes() for row in rows}) == 3
    )
    images = subject.draw([(subject.plain[0][1], 0)], "plain")
    difference = np.asarray(rows[0].after[0], dtype=int) - np.asarray(images[0], dtype=int)
    assert np.abs(difference).max() <= 1  # hardly any noise is none


def test_the_adapter_takes_over_within_every_batch(subject: Subject, few: Settings) -> None:
    layer = next(module for module in subject.pipe.unet.modules() if isinstance(module, BaseTunerLayer))
    asleep: list[bool] = []
    handle = subject.pipe.unet.register_forward_pre_hook(lambda *_: asleep.append(layer.disable_adapters))
    settings = dataclasses.replace(few, completion_shares=(0.75,))
    subject = dataclasses.replace(subject, num_inference_steps=4, eval_batch_size=2, sides=(False,))
    (row,) = completion.run(subject, settings)
    handle.remove()
    assert asleep == [True, True, True, False] * 2 and not layer.disable_adapters
    assert row.name == "first 3 of 4 steps by the base" and row.base is None


def test_a_completion_lies_between_the_base_and_the_adapter(subject: Subject, few: Settings) -> None:
    subject = dataclasses.replace(subject, num_inference_steps=4)
    rows = completion.run(subject, dataclasses.replace(few, completion_shares=(0.25, 0.5, 0.75)))
    plain = subject.compare("plain", subject.plain, few.num_images)
    drawn = [image.tobytes() for image in (plain.before[0], plain.after[0], *(row.after[0] for row in rows))]
    assert len(set(drawn)) == 5
    assert {row.before[0].tobytes() for row in rows} == {drawn[0]} and {row.base for row in rows} == {
        plain.base
    }


@pytest.mark.parametrize(("share", "missing"), [(0.1, "the base"), (0.9, "the adapter")])
def test_a_share_of_the_steps_is_some_of_them(
    share: float, missing: str, subject: Subject, few: Settings
) -> None:
    with pytest.raises(
        ValueError, match=f"--completion_shares {share} of 2 steps leaves no step to {missing}"
    ):
        completion.run(subject, dataclasses.replace(few, completion_shares=(0.5, share)))


def test_a_strength_is_at_least_a_step(subject: Subject, few: Settings) -> None:
    with pytest.raises(ValueError, match=r"--image_to_image_strengths 0\.4 of 2 steps is less than a step"):
        image_to_image.run(subject, dataclasses.replace(few, image_to_image_strengths=(1.0, 0.4)))


def test_an_image_begins_with_one_of_its_own_prompt(subject: Subject, few: Settings) -> None:
    settings = dataclasses.replace(few, num_concept_images=6)
    images, budget = beginnings(subject, settings)
    pictures = subject.pictures(6)
    jobs = subject.jobs(subject.plain, settings.num_images)
    cells = [pictures.cells[pictures.images.index(image)] for image in images]
    assert cells == [subject.plain[row][0] for row, _ in jobs] and budget.images == 6
    assert len({image.tobytes() for image in images}) == len(jobs)
    assert not {image.tobytes() for image in images} & {
        image.tobytes()
        for image in subject.draw([(subject.plain[row][1], seed) for row, seed in jobs], "judged")
    }


def test_the_users_images_are_fitted_and_few_of_them_are_enough(subject: Subject, few: Settings) -> None:
    subject = dataclasses.replace(subject, images=[Image.new("RGB", (40, 24), "red")])
    images, budget = beginnings(subject, few)
    assert len(images) == 4 and budget.images == 1
    assert {image.size for image in images} == {(16, 16)} and images[3].getpixel((8, 8)) == (255, 0, 0)
    assert all(row.after for probe in (image_to_image, inpainting) for row in probe.run(subject, few))


@pytest.mark.parametrize("probe", [image_to_image, inpainting])
def test_every_image_has_its_own_beginning_whatever_the_batch(
    probe: object, subject: Subject, few: Settings
) -> None:
    settings = dataclasses.replace(few, image_to_image_strengths=(0.5,), inpainting_parts=("left",))
    together, alone = (
        probe.run(dataclasses.replace(subject, eval_batch_size=size, _pictures={}), settings)
        for size in (64, 1)
    )
    for row, other in zip(together, alone, strict=True):
        for image, same in zip(row.after, other.after, strict=True):
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(same, dtype=int)).max() <= 2, row.name


def test_what_is_not_redrawn_is_the_same_on_both_sides(subject: Subject, few: Settings) -> None:
    rows = [*image_to_image.run(subject, few), *inpainting.run(subject, few)]
    untouched = [row for row in rows if row.name.endswith(("as they are", "half grey", "centre grey"))]
    assert len(untouched) == 1 + 2 and len(rows) == 1 + 2 + 2 * 3
    for row in rows:
        same = [image.tobytes() for image in row.before] == [image.tobytes() for image in row.after]
        assert same == (row in untouched) and (row.adapter == row.base or not same)


def test_only_the_part_is_grey_or_redrawn(subject: Subject, few: Settings) -> None:
    images, _ = beginnings(subject, few)
    rows = {row.name: row for row in inpainting.run(subject, few)}
    image = np.asarray(images[0])
    left, redrawn, alone = (
        np.asarray(rows[f"left half {what}"].after[0])
        for what in ("grey", "redrawn", "redrawn, all else grey")
    )
    assert (left[:, :8] == 127).all() and (alone[:, 8:] == 127).all()
    assert np.array_equal(left[:, 8:], image[:, 8:]) and np.array_equal(redrawn[:, 8:], image[:, 8:])
    assert np.array_equal(redrawn[:, :8], alone[:, :8]) and not np.array_equal(redrawn[:, :8], image[:, :8])
    areas = {part: np.asarray(mask_of(part, (16, 12))) for part in ("left", "right", "centre")}
    assert (areas["left"] + areas["right"] == 255).all()
    assert areas["centre"][3:9, 4:12].all() and areas["centre"].astype(bool).sum() == 6 * 8


def test_the_kept_part_of_the_latents_is_that_of_the_image(subject: Subject, few: Settings) -> None:
    images, _ = beginnings(subject, few)
    pipe = made_of(subject.pipe, AutoPipelineForInpainting)
    seen: list[torch.Tensor] = []

    def keep(called: object, step: int, timestep: int, tensors: dict) -> dict:
        seen.append(tensors["latents"])
        return tensors

    subject.draw(
        [("a cat", 0)],
        "",
        pipe,
        image=images[:1],
        mask_image=mask_of("left", images[0].size),
        strength=1.0,
        callback_on_step_end=keep,
    )
    with torch.no_grad():
        known = subject.pipe.vae.encode(to_pixels(images[:1])).latent_dist
    away = (seen[-1] / subject.pipe.vae.config.scaling_factor - known.mean).abs() / known.std
    assert away[..., 4:].max() < 5 < away[..., :4].max()


@pytest.mark.parametrize("kind", [AutoPipelineForImage2Image, AutoPipelineForInpainting])
def test_a_stock_pipeline_shares_what_it_is_made_of(kind: type, backbone_dir: Path) -> None:
    pipe = load_pipeline(backbone_dir, dtype=torch.bfloat16)
    scheduler = dict(pipe.scheduler.config)
    second = made_of(pipe, kind)
    assert second.unet is pipe.unet and second.vae is pipe.vae and second.text_encoder is pipe.text_encoder
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16
    assert second.scheduler is not pipe.scheduler and dict(pipe.scheduler.config) == scheduler


def test_a_stock_pipeline_is_guided_as_the_text_to_image_one(
    pipeline_dirs: dict[str, Path], tiny_judge: Judge
) -> None:
    """SDXL's inpainting pipeline has a default of its own, 7.5 in place of 5."""
    pipe = load_pipeline(pipeline_dirs["sdxl"])
    examination = JudgeExamination(tiny_judge, ["Van Gogh style"], "tiny-judge")
    subject = Subject(pipe, "", ["Van Gogh style"], examination, num_inference_steps=2, progress=False)
    second, image = made_of(pipe, AutoPipelineForInpainting), Image.new("RGB", (16, 16), "red")
    subject.draw([("a cat", 0)], "", second, image=[image], mask_image=mask_of("left", image.size))
    assert second.guidance_scale == subject.guidance == 5.0
