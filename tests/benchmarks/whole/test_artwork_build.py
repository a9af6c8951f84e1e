"""The artwork: from a pack to a pipeline, a judge that sees both of two, a teacher and a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from run_as_main import run_programs_here

from benchmarks.worlds.artwork import __main__ as command
from benchmarks.worlds.artwork import build, report
from benchmarks.worlds.artwork.judge import augment
from benchmarks.worlds.artwork.objects import ArtObject
from benchmarks.worlds.artwork.pack import Artwork, load, save
from benchmarks.worlds.artwork.packages import ArtworkError, Source
from benchmarks.worlds.artwork.render import SIDE
from benchmarks.worlds.artwork.scenes import SIZE
from benchmarks.worlds.canvas.models import pixels
from evaluation.judge import Judge

STYLES, NAMES = ("Flat", "Line"), ("cat", "dog", "fox", "pear")


def sprites() -> np.ndarray:
    """(styles, objects, SIDE, SIDE, 4) uint8: squares and frames of a colour each."""
    made = np.zeros((len(STYLES), len(NAMES), SIDE, SIDE, 4), np.uint8)
    for i in range(len(NAMES)):
        made[:, i] = (60 * i, 250 - 60 * i, 120 * (i % 2), 255)
    made[1, :, 12:-12, 12:-12, 3] = 0
    return made


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    objects = tuple(
        ArtObject(
            name,
            (f"{name}let",) if name == "fox" else (),
            ("animal",) if name != "pear" else (),
            "group",
            "subgroup",
            str(i),
            dict.fromkeys(STYLES, name),
        )
        for i, name in enumerate(NAMES)
    )
    sources = (Source("Flat", "set", "1.0", "a set", "an author", "", "MIT", ""),)
    file = tmp_path_factory.mktemp("artwork") / "pack.zip"
    save(Artwork(STYLES, objects, sources, sprites()), file)
    return file


def test_pictures_their_labels_and_captions_belong_together(packed: Path) -> None:
    artwork = load(packed)
    shown = build.scenes(artwork, 40, 7)
    images = build.pictures(packed, 40, 7)
    assert images.shape == (40, 3, SIZE, SIZE) and images.dtype == torch.uint8
    assert torch.equal(images[:20], build.pictures(packed, 20, 7))
    assert not torch.equal(images[:20], build.pictures(packed, 20, 8))
    truth = build.labels(artwork, shown)
    assert truth["object"].sum(1).tolist() == [len(scene.objects) for scene in shown]
    captions = build.captions_of(shown)(torch.tensor([3, 5]), torch.Generator())
    assert captions == [shown[3].caption, shown[5].caption]


def test_the_judge_is_trained_on_pictures_worse_than_drawings() -> None:
    x = pixels(torch.full((4, 3, SIZE, SIZE), 200, dtype=torch.uint8))
    one, again = (augment(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == x.shape and not torch.equal(one, x)


def test_from_the_pack_to_the_report(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_programs_here(monkeypatch)
    small = dict.fromkeys(build.SIZES["cpu"].steps, 4)
    few = ("--num_images", "32", "--width", "8")
    size = build.Size(
        pictures=64,
        steps=small,
        latent_channels=4,
        autoencoder_channels=(8, 8, 8, 8),
        unet_channels=(16, 16),
        unet_layers=1,
        text_width=16,
        reward_flags=few,
    )
    monkeypatch.setitem(build.SIZES, "cpu", size)
    monkeypatch.setattr(build, "JUDGE_WIDTHS", (8, 8))
    for name, value in {"FRESH": 32, "STEPS": 2, "CATEGORY_IMAGES": 4, "PAIR_IMAGES": 4}.items():
        monkeypatch.setattr(report, name, value)
    out = tmp_path / "world"
    given = ["--pack", str(packed), "--output_dir", str(out), "--size", "cpu"]
    with pytest.raises(ArtworkError, match="autoencoder"):
        command.run_build(command.parse_config(["build", *given, "--stages", "denoiser"]))
    command.main(command.parse_config(["build", *given]))
    assert '"judge_style"' in capsys.readouterr().out
    with pytest.raises(ArtworkError, match=r"scale.*--output_dir"):
        command.run_build(command.parse_config(["build", *given, "--scale", "2"]))
    quality = json.loads((out / "quality.json").read_text())
    assert all(0 <= quality[name] <= 100 for name in ("judge_style", "pipeline_object", "pipeline_synonym"))
    assert set(quality["category_entropy_bits"]) == {"animal"}
    assert "an author" in (out / "CREDITS.md").read_text()
    pipe = StableDiffusionPipeline.from_pretrained(out / "pipeline")
    assert pipe.unet.config.sample_size == SIZE // 8 and pipe.vae_scale_factor == 8
    judge = Judge.from_pretrained(out / "judge")
    seen = judge.shown(pixels(build.pictures(packed, 3, 1)))
    assert seen["style"].sum(1).tolist() == [1, 1, 1] and seen["object"].shape == (3, len(NAMES))
