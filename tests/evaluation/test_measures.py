"""Distances that are 0 where nothing differs and grow with what does, scores and drift as they are
defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import inception_v3

import canvas
from evaluation.judge import Judge
from evaluation.measures import (
    Measures,
    clip_features,
    distances,
    frechet_distance,
    inception_features,
    judge_features,
    kernel_distance,
    reference_features,
)
from evaluation.weights import UnreadableWeights
from reward.teacher import Teacher


def sample(count: int, shift: float = 0.0, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def pictures(count: int, size: int = 16, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)
    ]


def test_fid_is_zero_for_a_set_and_itself_and_the_closed_form_for_gaussians() -> None:
    one = sample(64)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-3)
    # A shift by 2 in each of 8 dimensions moves the means by 4 * 8; a spread of 3 in place of 1 adds (3 -
    # 1)^2 * 8.
    assert frechet_distance(sample(64) + 2, one) == pytest.approx(32, rel=1e-3)
    assert frechet_distance(sample(20_000, spread=3.0, seed=1), sample(20_000)) == pytest.approx(32, rel=0.05)


def test_kid_is_about_zero_for_one_distribution_and_positive_for_two() -> None:
    assert abs(kernel_distance(sample(500), sample(500, seed=1))) < 0.05
    assert kernel_distance(sample(500, shift=1.0), sample(500, seed=1)) > 1
    assert kernel_distance(sample(1500), sample(1200, seed=1)) == kernel_distance(
        sample(1500), sample(1200, seed=1)
    )  # over subsets


def test_distances_have_intervals_that_hold_them() -> None:
    prompts = [[2 * i, 2 * i + 1] for i in range(16)]
    found = distances(sample(32, shift=1.0, seed=1), sample(32), prompts, paired=True)
    for name in ("FID", "KID"):
        low, high = found[name]["ci95"]
        assert low < found[name]["mean"] < high
    assert found["FID"]["ci95"][0] >= 0
    assert found == distances(sample(32, shift=1.0, seed=1), sample(32), prompts, paired=True)
    same = distances(sample(32), sample(32), prompts, paired=True)
    assert same["FID"]["mean"] == pytest.approx(0, abs=1e-3) and same["FID"]["ci95"][1] < 1e-2
    assert distances(sample(2), sample(2), [[0]], paired=True) == {}
    unpaired = distances(sample(32), sample(200, shift=1.0, seed=1), prompts[:8], paired=False)
    assert unpaired["FID"]["mean"] > 4


@pytest.fixture(scope="module")
def clip() -> Teacher:
    return Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")


def test_drift_and_clip_score_of_each_image(clip: Teacher, tiny_judge: Judge) -> None:
    measures = Measures(judge_features(tiny_judge, "tiny"), clip, "a CLIP")
    base, prompts = pictures(3), ["a cat image in Neon style"] * 3
    inverted = Image.fromarray(255 - np.asarray(base[1]))
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    values = measures.observe([base[0], inverted, white], prompts, [base[0], base[1], black])
    assert values["pixel_drift"].tolist() == pytest.approx(
        [0, 100 * np.abs(2 * np.asarray(base[1], float) - 255).mean() / 255, 100]
    )
    assert values["ssim"][0] == pytest.approx(1) and values["ssim"][1] < 0 and values["ssim"][2] < 0.01
    cosine = (clip.encode_pictures([base[0]]) @ clip.encode_text(prompts[:1]).T).item()
    assert values["clip_score"][0] == pytest.approx(100 * max(0.0, cosine), abs=1e-3)
    assert values["features"].shape == (3, 8)
    assert set(measures.observe(base, prompts, None)) == {"features", "clip_score"}
    assert measures.names() == {
        "clip_score": "a CLIP",
        "features": "tiny, its features",
        "reference": "the base's images of the same prompts and seeds",
    }


def test_only_retained_images_count_for_drift_and_distances(tiny_judge: Judge) -> None:
    measures, forget = Measures(judge_features(tiny_judge, "tiny")), [True, False, False]
    ids, base = [0, 1, 2, 0, 1, 2], pictures(6)
    changed = [picture if i else Image.new("RGB", (16, 16)) for i, picture in zip(ids, base, strict=True)]
    before, after = measures.observe(base, [""] * 6, None), measures.observe(changed, [""] * 6, base)
    found = measures.summarize(after, before, ids, forget)
    assert found["pixel_drift"]["mean"] == 0 and found["ssim"]["mean"] == pytest.approx(1)
    assert found["FID"]["mean"] == pytest.approx(0, abs=1e-3)
    moved = measures.summarize(measures.observe(pictures(6, seed=1), [""] * 6, base), before, ids, forget)
    assert moved["pixel_drift"]["mean"] > 10 and moved["ssim"]["mean"] < 0.5
    assert measures.summarize(before, None, ids, forget) == {}


def test_features_of_the_networks_that_can_be_named(clip: Teacher, tmp_path: Path) -> None:
    assert clip_features(clip, "c").embed(pictures(2)).shape == (2, 64)
    torch.manual_seed(0)
    model = inception_v3(weights=None, init_weights=False)
    save_file(model.state_dict(), tmp_path / "inception.safetensors")
    torch.save(model.state_dict(), tmp_path / "inception.pth")
    features = inception_features(tmp_path / "inception.safetensors")
    images = pictures(2, 32)
    found = features.embed(images)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(inception_features(tmp_path / "inception.pth").embed(images), found)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        inception_features(tmp_path / "other.safetensors")
    torch.save(nn.Linear(2, 2), tmp_path / "code.pth")  # a pickle of a module, which is code
    with pytest.raises(UnreadableWeights, match=r"code\.pth"):
        inception_features(tmp_path / "code.pth")


def test_a_folder_of_real_images_is_a_reference(tiny_judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for i, picture in enumerate(pictures(3, 24)):
        picture.save(tmp_path / "deep" / f"{i}.png")
    reference = reference_features(tmp_path, tiny_judge.embed, (16, 16))
    assert reference.shape == (3, 8)
    measures = Measures(judge_features(tiny_judge, "tiny"), reference=reference, reference_name="photos")
    values = measures.observe(pictures(4, seed=1), [""] * 4, None)
    assert measures.summarize(values, None, [0, 0, 1, 1], [True, False]).keys() == {"FID", "KID"}
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        reference_features(tmp_path, tiny_judge.embed, (16, 16))
