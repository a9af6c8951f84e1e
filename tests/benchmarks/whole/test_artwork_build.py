"""The artwork: from a pack to a pipeline, a judge that sees both of two, a teacher and a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from run_as_main import run_programs_here
from safetensors.torch import load_file

from benchmarks.artwork import __main__ as comparison
from benchmarks.worlds.artwork import GUIDANCE, build, report
from benchmarks.worlds.artwork import __main__ as command
from benchmarks.worlds.artwork.judge import augment
from benchmarks.worlds.artwork.objects import ArtObject
from benchmarks.worlds.artwork.pack import Artwork, load, save
from benchmarks.worlds.artwork.packages import ArtworkError, Source
from benchmarks.worlds.artwork.render import SIDE
from benchmarks.worlds.artwork.scenes import SIZE
from benchmarks.worlds.canvas.models import pixels
from evaluation import artwork
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
    found = load(packed)
    shown = build.scenes(found, 40, 7)
    images = build.pictures(packed, 40, 7)
    assert images.shape == (40, 3, SIZE, SIZE) and images.dtype == torch.uint8
    assert torch.equal(images[:20], build.pictures(packed, 20, 7))
    assert not torch.equal(images[:20], build.pictures(packed, 20, 8))
    truth = build.labels(found, shown)
    assert truth["object"].sum(1).tolist() == [len(scene.objects) for scene in shown]
    captions = build.captions_of(shown)(torch.tensor([3, 5]), torch.Generator())
    assert captions == [shown[3].caption, shown[5].caption]


def test_the_judge_is_trained_on_pictures_worse_than_drawings() -> None:
    x = pixels(torch.full((4, 3, SIZE, SIZE), 200, dtype=torch.uint8))
    one, again = (augment(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == x.shape and not torch.equal(one, x)


def test_from_the_pack_to_the_comparison(
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
    for name, value in {"FRESH": 32, "CATEGORY_IMAGES": 4, "PAIR_IMAGES": 4}.items():
        monkeypatch.setattr(report, name, value)
    monkeypatch.setattr(artwork.ArtworkExamination, "num_inference_steps", 2)
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

    further = [*given[:3], str(tmp_path / "further"), *given[4:], "--begun", str(out / "pipeline")]
    command.main(command.parse_config(["build", *further, "--stages", "autoencoder", "denoiser"]))
    for part, kept in {"vae": True, "unet": False}.items():
        before, after = (
            load_file(root / "pipeline" / part / "diffusion_pytorch_model.safetensors")
            for root in (out, tmp_path / "further")
        )
        assert before.keys() == after.keys()
        assert kept == all(torch.equal(before[name], after[name]) for name in before)

    with pytest.raises(ArtworkError, match=r"'dodo'.*\bfox\b.*\bLine\b"):
        command.run_build(command.parse_config(["build", *given, "--without", "dodo"]))
    command.main(command.parse_config(["build", *given, "--without", "cat"]))
    whole, without = (load_file(weights_of(out, name)) for name in ("pipeline", "pipeline-without-cat"))
    assert whole.keys() == without.keys() and any(not torch.equal(whole[k], without[k]) for k in whole)

    for name in ("CATEGORY_IMAGES", "PAIR_IMAGES", "NAMED_IMAGES"):
        monkeypatch.setattr(artwork, name, 4)
    chosen = [
        "--base",
        str(out),
        "--methods",
        "uce",
        "--concepts",
        "cat",
        "Line style",
        "--jobs",
        "1",
        "--more_seeds",
        "1",
        "--records",
        str(tmp_path / "records"),
    ]
    compared = tmp_path / "compared"
    comparison.main(comparison.parse_config([*chosen, "--output_dir", str(compared)]))
    told = {file.stem: file.read_text().splitlines() for file in (compared / "told").iterdir()}
    assert told["cat"] == [f"a {name} in {style} style" for style in STYLES for name in ("dog", "pear")]
    assert told["line-style"] == [f"a {name} in Flat style" for name in NAMES]
    spec = json.loads((compared / "runs" / "uce-cat-0" / "results.json").read_text())
    assert spec["forget_prompts"] == [f"a cat in {style} style" for style in STYLES]
    assert spec["retain_prompts"] == told["cat"]
    table = (compared / "table.md").read_text()
    assert "| never saw the concept |" in table and "object UA_synonyms" not in table
    found = json.loads((compared / "comparison.json").read_text())["runs"]
    assert [(run["method"], run["concept"], run["seed"]) for run in found] == [
        *(("uce", "cat", 0), ("uce", "cat", 1)),
        *(("uce", "Line style", 0), ("uce", "Line style", 1)),
        ("never", "cat", 0),
    ]
    assert found[4]["base"] == found[0]["base"] and found[4]["adapter"] != found[0]["base"]
    assert {run["guidance_scale"] for run in found} == {GUIDANCE}
    assert found[1]["seeds"] == [1000, 1001] and found[0]["seeds"] == [0, 1]
    assert (compared / "cat.png").is_file() and (compared / "comparison.png").is_file()

    shutil.rmtree(out / "pipeline-without-cat")
    again = tmp_path / "again"
    comparison.main(comparison.parse_config([*chosen, "--output_dir", str(again)]))
    assert (again / "table.md").read_text() == table
    assert not (again / "runs").exists() and not (again / "cat.png").exists()
    shutil.rmtree(out / "judge")
    with pytest.raises(ValueError, match=r"holds no judge.*--output_dir"):
        comparison.main(comparison.parse_config([*chosen, "--output_dir", str(compared)]))


def weights_of(out: Path, name: str) -> Path:
    return out / name / "unet" / "diffusion_pytorch_model.safetensors"
