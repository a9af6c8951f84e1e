from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import canvas
from benchmarks.worlds.canvas.build import COMBINATIONS, prompts
from benchmarks.worlds.canvas.draw import draw
from reward.concept import make_spec
from reward.margin import ConceptReward
from reward.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    """One fresh drawing of every combination, (64, 3, 32, 32) in [-1, 1]."""
    images = np.stack(
        [draw(*combination, np.random.default_rng([77, i])) for i, combination in enumerate(COMBINATIONS)]
    )
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_embeddings_have_unit_length(teacher: Teacher, drawings: torch.Tensor) -> None:
    for embeddings in (teacher.encode_text(prompts()), teacher.encode_images(drawings)):
        assert embeddings.shape == (64, 64) and embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(64))


def test_a_drawing_is_nearest_to_its_own_prompt(teacher: Teacher, drawings: torch.Tensor) -> None:
    nearest = (teacher.encode_images(drawings) @ teacher.encode_text(prompts()).T).argmax(dim=-1)
    cat_in_neon = COMBINATIONS.index(("Neon", "cat"))
    assert prompts()[nearest[cat_in_neon]] == "a cat image in Neon style"
    assert (nearest == torch.arange(64)).float().mean() >= 0.95


def test_batches_and_other_resolutions_change_little(teacher: Teacher, drawings: torch.Tensor) -> None:
    embeddings = teacher.encode_images(drawings)
    torch.testing.assert_close(teacher.encode_images(drawings, batch_size=5), embeddings, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        teacher.encode_text(prompts(), batch_size=7), teacher.encode_text(prompts()), atol=1e-4, rtol=0
    )
    large = teacher.encode_images(F.interpolate(drawings, scale_factor=2))
    assert (large * embeddings).sum(-1).mean() > 0.9


def test_the_reward_of_an_anchor_is_far_above_that_of_the_concept(
    teacher: Teacher, drawings: torch.Tensor
) -> None:
    spec = make_spec(["Neon style"], prompts(), teacher.encode_text)
    reward, embeddings = ConceptReward.from_spec(spec, teacher), teacher.encode_images(drawings)
    rows = torch.arange(len(spec.forget_prompts))
    neon = embeddings[[COMBINATIONS.index(("Neon", p.split()[1])) for p in spec.forget_prompts]]
    mosaic = embeddings[[COMBINATIONS.index(("Mosaic", p.split()[1])) for p in spec.forget_prompts]]
    assert (reward.margin(mosaic[:, None], rows) - reward.margin(neon[:, None], rows) > 0.5).all()
    assert not reward.forgotten(neon, rows)[0].any() and reward.forgotten(mosaic, rows)[0].all()


@pytest.mark.parametrize(
    ("clip_model", "clip_pretrained", "names"),
    [
        ("local-dir:/nowhere/clip", None, "/nowhere/clip"),
        ("ViT-B-32", None, "--clip_pretrained"),
        ("ViT-B-32", "/tmp/weights.pt", "--clip_pretrained .*pickle"),
        ("ViT-B-32", "open_clip_pytorch_model.bin", "--clip_pretrained .*pickle"),
        ("no-such-architecture", "no-such-tag", "no-such-architecture"),
    ],
)
def test_a_clip_that_cannot_be_had_is_refused(
    clip_model: str, clip_pretrained: str | None, names: str
) -> None:
    with pytest.raises(ValueError, match=names) as caught:
        Teacher.from_pretrained(clip_model, clip_pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_a_damaged_clip_is_refused(file: str, tmp_path: Path) -> None:
    directory = tmp_path / "clip"
    shutil.copytree(canvas.CLIP, directory)
    (directory / file).write_bytes((directory / file).read_bytes()[:100])
    with pytest.raises(ValueError, match=str(directory)):
        Teacher.from_pretrained(f"local-dir:{directory}")
