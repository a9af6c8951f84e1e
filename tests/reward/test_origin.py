from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

import canvas
from common.network import CheckpointError
from pipelines.base import load_pipeline
from reward.origin import check_fit, describe_origin, fingerprint, key_of
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")


@pytest.fixture
def predictor(teacher: Teacher) -> RewardPredictor:
    origin = describe_origin(
        {"name": "some/base", "revision": None},
        DDIMScheduler(**SCHEDULE),
        teacher,
        {"kind": "base samples"},
        {"steps": 1},
    )
    return RewardPredictor(4, 8, 64, width=8, condition_dim=16, origin=origin)


def test_what_it_was_made_for_is_let_pass_whatever_the_sampler(
    predictor: RewardPredictor, teacher: Teacher
) -> None:
    for scheduler in (
        DDIMScheduler(**SCHEDULE),
        EulerDiscreteScheduler(**SCHEDULE),
        DDIMScheduler(timestep_spacing="trailing", **SCHEDULE),
    ):
        check_fit(predictor, (4, 8, 8), SD, scheduler, teacher)


@pytest.mark.parametrize(
    ("channels", "size", "schedule", "names"),
    [
        (4, 16, {}, r"some/base.*4x8x8.*4x16x16"),
        (16, 8, {}, r"4x8x8.*16x8x8"),
        (4, 8, {"num_train_timesteps": 500}, r"\b1000\b.*\b500\b"),
        (
            4,
            8,
            {"beta_schedule": "linear"},
            r"scaled_linear 0\.00085 .*0\.012.* linear 0\.00085 .*0\.012",
        ),
        (4, 8, {"beta_end": 0.02}, r"scaled_linear.*0\.012.*scaled_linear.*0\.02"),
        (4, 8, {"rescale_betas_zero_snr": True}, r"t=\d+"),
    ],
)
def test_another_base_is_refused_by_naming_both(
    channels: int,
    size: int,
    schedule: dict[str, object],
    names: str,
    predictor: RewardPredictor,
    teacher: Teacher,
) -> None:
    with pytest.raises(CheckpointError, match=names) as caught:
        check_fit(predictor, (channels, size, size), SD, DDIMScheduler(**(SCHEDULE | schedule)), teacher)
    assert "python -m reward.train" in str(caught.value) and "\n" not in str(caught.value)


def test_latents_of_the_same_shape_of_another_class_of_base_are_refused(teacher: Teacher) -> None:
    base = {"name": "some/base", "revision": None, "pipeline_class": SD}
    origin = describe_origin(base, DDIMScheduler(**SCHEDULE), teacher, {"kind": "base samples"}, {"steps": 1})
    predictor = RewardPredictor(4, 8, 64, width=8, condition_dim=16, origin=origin)
    check_fit(predictor, (4, 8, 8), SD, DDIMScheduler(**SCHEDULE), teacher)
    with pytest.raises(CheckpointError, match=rf"{SD}.*{XL}.*reward\.train"):
        check_fit(predictor, (4, 8, 8), XL, DDIMScheduler(**SCHEDULE), teacher)


def test_latents_that_are_not_square_are_told_from_those_that_are(teacher: Teacher) -> None:
    predictor = RewardPredictor(4, [8, 12], 64, width=8, condition_dim=16)
    check_fit(predictor, (4, 8, 12), SD, DDIMScheduler(**SCHEDULE), teacher)
    assert predictor(torch.randn(2, 4, 8, 12), torch.tensor([3, 500])).shape == (2, 64)
    for shape, names in (
        ((4, 12, 8), r"4x8x12.*4x12x8"),
        ((4, 12, 12), r"4x8x12.*4x12x12"),
    ):
        with pytest.raises(CheckpointError, match=names):
            check_fit(predictor, shape, SD, DDIMScheduler(**SCHEDULE), teacher)


def test_another_clip_is_refused_even_if_its_embeddings_are_as_long(
    predictor: RewardPredictor, teacher: Teacher
) -> None:
    with pytest.raises(CheckpointError, match=r"\b12\b.*\b64\b.*reward\.train"):
        check_fit(RewardPredictor(4, 8, 12, width=8), (4, 8, 8), SD, DDIMScheduler(**SCHEDULE), teacher)
    other = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
    with torch.no_grad():
        other.model.text_projection.copy_(other.model.text_projection.flip(1))
    with pytest.raises(CheckpointError, match=r"reward\.train"):
        check_fit(predictor, (4, 8, 8), SD, DDIMScheduler(**SCHEDULE), other)


def test_a_checkpoint_that_records_nothing_is_let_pass(teacher: Teacher) -> None:
    pipe, bundled = load_pipeline(canvas.PIPELINE), RewardPredictor.from_pretrained(canvas.REWARD)
    assert bundled.config["timestep_conditioning"]
    check_fit(bundled, (4, 8, 8), SD, pipe.scheduler, teacher)


def test_fingerprints_tell_weights_apart_and_keys_descriptions(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    before = fingerprint(pipe.unet, pipe.vae)
    assert before == fingerprint(load_pipeline(tiny_pipeline_dir).unet, pipe.vae) != fingerprint(pipe.unet)
    with torch.no_grad():
        pipe.unet.mid_block.resnets[0].conv1.weight *= 1.001
    assert fingerprint(pipe.unet, pipe.vae) != before
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})
