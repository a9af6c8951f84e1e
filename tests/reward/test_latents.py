from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

import canvas
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from reward.latents import (
    BaseRollouts,
    BaseSamples,
    DatasetImages,
    Drawn,
    EncodedImages,
    ImageFolder,
    collect,
    to_size,
)
from reward.teacher import Teacher

PROMPTS = ["a cat", "a tree", "a car"]


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir: Path) -> StableDiffusionPipeline:
    return load_pipeline(tiny_pipeline_dir)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")


class Counted(BaseSamples):
    """The base's samples, and which shards were drawn."""

    drawn: list[int]

    def shard(self, index: int) -> Drawn:
        self.drawn = [*getattr(self, "drawn", []), index]
        return super().shard(index)


def samples(pipe: StableDiffusionPipeline, **changes: object) -> Counted:
    settings: dict[str, object] = {
        "prompts": PROMPTS,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "shard_size": 4,
        "seed": 0,
    }
    source = Counted(pipe, **(settings | changes))
    source.drawn = []
    return source


def test_base_samples_are_as_many_as_asked_for_and_reproducible(
    pipe: StableDiffusionPipeline, teacher: Teacher
) -> None:
    first, again, other = (collect(samples(pipe, seed=seed), teacher, 7) for seed in (0, 0, 1))
    assert (
        first.latents.shape == (7, 4, 8, 8)
        and first.latents.isfinite().all()
        and first.embeddings.shape == (7, 64)
    )
    assert torch.equal(first.latents, again.latents) and not torch.equal(first.latents, other.latents)
    torch.testing.assert_close(
        first.embeddings, teacher.encode_images(Backbone.of(pipe).decode(first.latents)), atol=1e-5, rtol=0
    )
    train, held_out = first.held_out()
    assert len(train) == 6 and torch.equal(held_out.latents, first.latents[:1])


def test_as_many_are_made_at_a_time_as_they_are_large(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    assert BaseRollouts(pipe, PROMPTS).shard_size == 64
    pipe.unet.register_to_config(sample_size=64)  # Stable Diffusion 1.5's
    assert (
        BaseSamples(pipe, PROMPTS).shard_size == 8
        and EncodedImages(pipe, [Image.new("RGB", (8, 8))] * 9, {}, "some").shard_size == 8
    )
    assert BaseSamples(pipe, PROMPTS, shard_size=3).shard_size == 3


def test_base_samples_are_not_clipped_unless_the_base_says_so(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.scheduler = EulerDiscreteScheduler.from_config(DDIMScheduler(beta_schedule="scaled_linear").config)
    config = {k: v for k, v in pipe.scheduler.config.items() if k != "clip_sample"}
    pipe.scheduler = own = EulerDiscreteScheduler.from_config(config)
    assert BaseSamples(pipe, ["a cat"], 3, 5.0, shard_size=4).shard(0).latents.abs().max() > 1.5
    assert pipe.scheduler is own
    pipe.scheduler = DDIMScheduler(clip_sample=True)
    assert BaseSamples(pipe, ["a cat"], 3, 5.0, shard_size=4).shard(0).latents.abs().max() < 1.5


def test_rollouts_keep_the_states_that_end_in_each_latent(
    pipe: StableDiffusionPipeline, teacher: Teacher, tmp_path: Path
) -> None:
    source = BaseRollouts(pipe, PROMPTS, num_inference_steps=3, guidance_scale=3.0, shard_size=4)
    made = collect(source, teacher, 6, tmp_path)
    assert made.states.shape == (6, 3, 4, 8, 8) and made.states.dtype == torch.float16
    assert (
        made.timesteps.tolist() == sorted(made.timesteps.tolist(), reverse=True) and len(made.timesteps) == 3
    )
    # The prompt's own rollout from the kept pure noise with the same noises ends in the kept latent.
    again = source.shard(1)
    assert again.states is not None
    assert torch.equal(again.latents[:2], made.latents[4:]) and torch.equal(
        again.states[:2].half(), made.states[4:]
    )
    assert abs(made.states[:, 0].float().std() - 1) < 0.1
    read = collect(source, teacher, 6, tmp_path)
    assert torch.equal(read.states, made.states) and torch.equal(read.timesteps, made.timesteps)
    assert (
        len(collect(samples(pipe), teacher, 6, tmp_path).timesteps) == 0
        and len(list(tmp_path.iterdir())) == 2
    )


def test_what_is_cached_is_not_drawn_again(
    pipe: StableDiffusionPipeline, teacher: Teacher, tmp_path: Path
) -> None:
    first = samples(pipe)
    made = collect(first, teacher, 10, tmp_path)
    assert first.drawn == [0, 1, 2]
    (directory,) = tmp_path.iterdir()
    assert sorted(p.name for p in directory.iterdir()) == [
        "000000.safetensors",
        "000001.safetensors",
        "000002.safetensors",
        "source.json",
    ]
    assert torch.equal(made.latents, collect(samples(pipe), teacher, 10).latents)
    again = samples(pipe)
    read = collect(again, teacher, 10, tmp_path)
    assert (
        again.drawn == []
        and torch.equal(read.latents, made.latents)
        and torch.equal(read.embeddings, made.embeddings)
    )
    (directory / "000001.safetensors").unlink()  # as a kill leaves it
    more = samples(pipe)
    grown = collect(more, teacher, 14, tmp_path)
    assert more.drawn == [1, 3] and torch.equal(grown.latents[:10], made.latents)
    assert torch.equal(collect(samples(pipe), teacher, 5, tmp_path).latents, made.latents[:5])


@pytest.mark.parametrize("damage", ["truncated", "empty", "a changed bit"])
def test_a_damaged_shard_is_made_again_and_said(
    damage: str,
    pipe: StableDiffusionPipeline,
    teacher: Teacher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = collect(samples(pipe), teacher, 8, tmp_path)
    path = next(tmp_path.glob("*/000001.safetensors"))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-7] ^= 1
    path.write_bytes({"truncated": content[:-50], "empty": b"", "a changed bit": bytes(flipped)}[damage])
    capsys.readouterr()
    again = samples(pipe)
    read = collect(again, teacher, 8, tmp_path)
    assert again.drawn == [1] and torch.equal(read.latents, made.latents)
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ["a cat"]},
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"seed": 1},
        {"shard_size": 5},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_do_not_find_the_cache(
    change: dict[str, object], pipe: StableDiffusionPipeline, teacher: Teacher, tmp_path: Path
) -> None:
    collect(samples(pipe), teacher, 4, tmp_path)
    other = samples(pipe, **change)
    collect(other, teacher, 4, tmp_path)
    assert other.drawn == [0] and len(list(tmp_path.iterdir())) == 2


def test_other_weights_do_not_find_the_cache(
    tiny_pipeline_dir: Path, teacher: Teacher, tmp_path: Path
) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    collect(samples(pipe), teacher, 4, tmp_path)
    with torch.no_grad():
        pipe.unet.conv_in.weight += 0.01
    other = samples(pipe)
    collect(other, teacher, 4, tmp_path)
    assert other.drawn == [0]
    with torch.no_grad():
        student = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
        next(student.model.visual.parameters()).add_(0.01)
    other = samples(pipe)
    collect(other, student, 4, tmp_path)
    assert other.drawn == [0] and len(list(tmp_path.iterdir())) == 3


def test_a_cache_that_something_else_made_is_refused(
    pipe: StableDiffusionPipeline, teacher: Teacher, tmp_path: Path
) -> None:
    collect(samples(pipe), teacher, 4, tmp_path)
    path = next(tmp_path.glob("*/source.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_scale": 1.0}))
    with pytest.raises(ValueError, match=r"source\.json"):
        collect(samples(pipe), teacher, 4, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of several shapes and modes, one in a subfolder."""
    directory = tmp_path / "images"
    (directory / "more").mkdir(parents=True)
    values = np.random.default_rng(0)
    for i, (height, width) in enumerate([(16, 16), (40, 24), (20, 64), (9, 9)]):
        Image.fromarray(values.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(
            directory / f"{i}.png"
        )
    Image.new("L", (30, 30), 200).save(directory / "more" / "grey.jpg")
    (directory / "notes.txt").write_text("no image")
    return directory


def test_images_of_a_folder_are_encoded_at_the_bases_resolution(
    pipe: StableDiffusionPipeline, teacher: Teacher, folder: Path, tmp_path: Path
) -> None:
    images = ImageFolder(folder)
    source = EncodedImages(pipe, images, images.label(), "images", shard_size=2)
    made = collect(source, teacher, None, tmp_path / "cache")
    assert made.latents.shape == (5, 4, 8, 8) and collect(source, teacher, 3).latents.shape == (3, 4, 8, 8)
    row = source.order.index(0)
    assert sorted(source.order) == list(range(5))
    with torch.no_grad():
        pixels = (
            torch.from_numpy(np.array(Image.open(folder / "0.png"))).permute(2, 0, 1)[None].float() / 127.5
            - 1
        )
        expected = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(made.latents[row : row + 1], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(collect(source, teacher, None, tmp_path / "cache").latents, made.latents)
    Image.new("RGB", (16, 16)).save(folder / "0.png")
    changed = ImageFolder(folder)
    other = collect(
        EncodedImages(pipe, changed, changed.label(), "images", shard_size=2),
        teacher,
        None,
        tmp_path / "cache",
    )
    assert not torch.equal(other.latents[row], made.latents[row])


def test_the_middle_of_an_upright_image_is_taken() -> None:
    image = Image.new("RGB", (30, 10))
    image.paste((255, 255, 255), (10, 0, 20, 10))
    assert to_size(image, 10, 10).mean() > 0.9
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = Image.new("RGB", (10, 30))
    turned.paste((255, 255, 255), (0, 10, 10, 20))
    turned.info["exif"] = exif.tobytes()
    assert to_size(turned, 10, 10).shape == (3, 10, 10) and to_size(turned, 10, 10).mean() > 0.9


def test_folders_without_images_and_images_that_are_none_are_refused(
    pipe: StableDiffusionPipeline, teacher: Teacher, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--train_data_dir .*empty"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"--train_data_dir .*absent"):
        ImageFolder(tmp_path / "absent")
    (folder / "2.png").write_bytes(b"no image")
    images = ImageFolder(folder)
    with pytest.raises(ValueError, match=r"2\.png") as caught:
        collect(EncodedImages(pipe, images, images.label(), "images"), teacher, None)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="the package is installed")
def test_a_missing_package_is_said() -> None:
    with pytest.raises(ValueError, match="--dataset_name"):
        DatasetImages("some/dataset", None, "train", "image")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")
def test_images_of_a_dataset(
    pipe: StableDiffusionPipeline,
    teacher: Teacher,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    images = DatasetImages(str(folder), None, "train", "image")
    assert len(images) == 5 and isinstance(images[0], Image.Image)
    made = collect(EncodedImages(pipe, images, images.label(), "images"), teacher, None, tmp_path / "cache")
    plain = ImageFolder(folder)
    assert torch.equal(
        made.latents, collect(EncodedImages(pipe, plain, plain.label(), "images"), teacher, None).latents
    )
    for name, split, column, names in [
        (folder, "train", "picture", "--image_column"),
        (folder, "test", "image", "test"),
        (tmp_path / "absent", "train", "image", "absent"),
    ]:
        with pytest.raises(ValueError, match=names) as caught:
            DatasetImages(str(name), None, split, column)
        assert "\n" not in str(caught.value)
