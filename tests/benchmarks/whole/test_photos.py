"""The photographs: from a zip to tensors, what a broken zip says, and the batches made of them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_as_main import run_programs_here
from safetensors.torch import load_file

import benchmarks.photos.__main__ as comparison
from benchmarks.compare.methods import BASE
from benchmarks.photos import forgetting, tables
from benchmarks.worlds.canvas import models
from benchmarks.worlds.photos import __main__ as command
from benchmarks.worlds.photos import build
from benchmarks.worlds.photos.data import CLASSES, DataError, Photos, load_photos, read_zip
from evaluation.__main__ import parse_config as parse_evaluation
from evaluation.judge import to_pixels
from evaluation.probes.__main__ import parse_config as parse_probes
from reward.concept.exemplars import read_images


def jpeg(colour: tuple[int, int, int], side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_zip(
    file: Path, train: int = 2, test: int = 1, classes: list[str] = CLASSES, side: int = 32
) -> Path:
    """Image i of class c in split s is of colour (20 * c, 100 * i, 255 for test)."""
    with zipfile.ZipFile(file, "w") as archive:
        for split, count in {"train": train, "test": test}.items():
            for name in classes:
                archive.writestr(f"{split}/{name}/", "")
                for i in range(count):
                    colour = (20 * CLASSES.index(name), 100 * i, 255 * (split == "test"))
                    archive.writestr(f"{split}/{name}/{i:04}.jpg", jpeg(colour, side))
    return file


def test_zip_becomes_tensors_in_order(tmp_path: Path) -> None:
    photos = load_photos(write_zip(tmp_path / "photos.zip"), tmp_path / "work" / "cache.safetensors")
    assert photos["train"].images.shape == (20, 3, 32, 32) and photos["train"].images.dtype == torch.uint8
    assert photos["train"].labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert photos["test"].labels.tolist() == list(range(10))
    for i, image in enumerate(photos["train"].images):
        expected = torch.tensor([20.0 * (i // 2), 100.0 * (i % 2), 0.0])
        assert (image.float().mean(dim=(1, 2)) - expected).abs().max() < 4
    assert photos["test"].images[:, 2].float().mean() > 250


def test_the_cache_replaces_the_zip(tmp_path: Path) -> None:
    cache = tmp_path / "cache.safetensors"
    first = load_photos(write_zip(tmp_path / "photos.zip"), cache)
    second = load_photos(None, cache)
    assert all(torch.equal(a, b) for split in first for a, b in zip(first[split], second[split], strict=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: None, "photos.zip"),
        (lambda file: file.write_bytes(b"no zip at all"), "photos.zip"),
        (lambda file: file.write_bytes(write_zip(file).read_bytes()[:3000]), "photos.zip"),
        (lambda file: write_zip(file, classes=CLASSES[:9]), "truck"),
        (lambda file: write_zip(file, side=16), "16x16"),
    ],
    ids=["missing", "no zip", "cut off", "a class missing", "wrong size"],
)
def test_bad_zip_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make, says: str
) -> None:
    file = tmp_path / "photos.zip"
    make(file)
    assert (
        command.main(command.parse_config(["--data_zip", str(file), "--output_dir", str(tmp_path / "out")]))
        == 2
    )
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_a_broken_photograph_is_named_as_broken_zip(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "photos.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("train/cat/9999.jpg", b"no photograph")
    with pytest.raises(DataError, match=r"photos\.zip"):
        read_zip(file)


def test_without_zip_and_datasets_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="--data_zip"):
        load_photos(None, tmp_path / "cache.safetensors")


def test_captions_name_the_class_and_mostly_use_the_usual_prompt() -> None:
    labels = torch.arange(2000) % 10
    captions = build.pipeline_captions(labels)(torch.arange(2000), torch.Generator().manual_seed(0))
    assert all(CLASSES[label] in caption for label, caption in zip(labels.tolist(), captions, strict=True))
    usual = sum(
        caption == build.PROMPT.format(object=CLASSES[label])
        for label, caption in zip(labels.tolist(), captions, strict=True)
    )
    assert 0.7 < usual / 2000 < 0.8
    batch = build.teacher_captions(labels)(torch.arange(128), torch.Generator().manual_seed(0))
    assert len(set(batch)) == 10


def test_flips_follow_the_photographs() -> None:
    photos = Photos(torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8), torch.tensor([4, 5, 6]))
    both = build.with_flips(photos)
    assert torch.equal(both.images[3:].flip(-1), photos.images) and both.labels.tolist() == [4, 5, 6, 4, 5, 6]


def test_crop_and_flip_moves_images_within_their_bounds() -> None:
    x = torch.arange(32.0).expand(64, 3, 32, 32)
    moved = build.crop_and_flip(x, torch.Generator().manual_seed(0), pad=4)
    assert moved.shape == x.shape
    rising = moved[:, 0, 0, 16] > moved[:, 0, 0, 15]
    assert 0 < rising.sum() < 64
    centre = moved[:, 0, 0, 16]
    assert ((centre >= 11) & (centre <= 20)).all() and len(centre.unique()) > 5


def test_a_square_is_cut_out_of_every_image() -> None:
    x = torch.ones(300, 3, 32, 32)
    cut = build.cut_out(x, torch.Generator().manual_seed(0), 9)
    assert not x.eq(0).any()
    grey = cut.eq(0)
    assert (grey | cut.eq(1)).all() and (grey == grey[:, :1]).all()
    heights, widths = grey[:, 0].any(2).sum(1), grey[:, 0].any(1).sum(1)
    assert torch.equal(grey[:, 0].sum((1, 2)), heights * widths)  # a rectangle
    assert (
        heights.min() >= 5 and heights.max() == 9 and widths.max() == 9
    )  # less where it reaches over the edge
    assert grey.any(dim=0).all()  # it may be anywhere


def test_soften_leaves_most_images_alone() -> None:
    x = torch.rand(64, 3, 32, 32)
    soft = build.soften(x, torch.Generator().manual_seed(0))
    same = (soft == x).flatten(1).all(1)
    assert soft.shape == x.shape and 32 < same.sum() < 60
    assert (soft[~same].std() < x.std()) and torch.allclose(soft.mean(), x.mean(), atol=0.01)


def test_the_less_noise_the_less_an_error_counts() -> None:
    scheduler = models.build_scheduler()
    t = torch.tensor([0, 300, 999])
    kept = scheduler.alphas_cumprod[t]
    ratio = kept / (1 - kept)
    weights = models.min_snr_weights(scheduler, t, gamma=5)
    assert (
        ratio[0] > 100
        and ratio[1] < 5
        and torch.allclose(weights, torch.stack([5 / ratio[0], torch.tensor(1.0), torch.tensor(1.0)]))
    )


def test_training_in_fast_arithmetic_uses_the_updated_weights() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(1, 4)
    with build.fast_arithmetic():
        before = layer(x).detach().clone()
        with torch.no_grad():
            layer.weight.add_(1)
        assert not torch.allclose(layer(x), before)


def seen(*rows: tuple[int, list[float]]) -> forgetting.Observed:
    """Images by the class asked for and what the judge says; their one feature is the class."""
    asked = torch.tensor([label for label, _ in rows])
    return forgetting.Observed(torch.tensor([said for _, said in rows]), asked[:, None].float(), asked)


def test_class_wise_metrics_of_a_known_verdict() -> None:
    sure, torn = [0.0] * 9 + [1.0], [0.5] + [0.0] * 8 + [0.5]
    others = [(label, sure) for label in range(9) for _ in range(2)]
    photographs = torch.arange(10.0).repeat(4)[:, None]
    found = forgetting.class_wise(
        seen(*others, (9, sure), (9, torn)), photographs, torch.arange(10).repeat(4), "truck"
    )
    # argmax takes the first of equals: of the two images one still shows a truck; entropy is 0 and ln 2
    assert (
        found["UA"] == 50
        and found["probability"] == pytest.approx(0.75)
        and found["entropy"] == pytest.approx(0.6931 / 2, abs=1e-4)
    )
    # one image of each of the nine others (two images of trucks, a tenth rounded up) against 36 photographs
    # with the same mean 4: variances 7.5 and 60 * 4 / 35
    assert found["FID"] == pytest.approx((7.5**0.5 - (240 / 35) ** 0.5) ** 2, abs=1e-4)


def test_tables_class_by_class() -> None:
    def run(name: str, ua: float, ira: float, nra: float | None) -> dict[str, Any]:
        side = {"UA": ua, "IRA": ira, "NRA": nra}
        cost = {"iterations": 4, "images": 300, "seconds": 50.0}
        return {"concept": name, "base": side | {"UA": 10.0}, "adapter": side, "training": cost}

    rows = tables.by_class(
        [run("cat", 90.0, 80.0, 70.0), run("cat", 100.0, 90.0, 60.0), run("dog", 85.0, 95.0, None)]
    ).splitlines()
    assert rows[0] == "| class | UA (base) | IRA (base) | NRA (base) | iterations | images | seconds |"
    assert rows[2] == "| cat | 95.0 (10.0) | 85.0 (85.0) | 65.0 (65.0) | 4.0 | 300 | 50 |"
    assert rows[4] == "| mean | 90.0 (10.0) | 90.0 (90.0) | 65.0 (65.0) | 4.0 | 300 | 50 |"
    metrics = {"UA": 100.0, "probability": 0.25, "entropy": 1.5, "FID": 3.0}
    text = tables.forgetting_table(
        {"ours": {"cat": metrics, "dog": metrics | {"UA": 90.0}}, "nobody": {"frog": metrics}}, ["cat", "dog"]
    )
    assert text.splitlines()[2:] == ["| ours | 2 | 95.0 | 0.250 | 1.50 | 3.00 |"]


def test_an_incomplete_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ValueError, match=r"\bclip\b.*\breward\b.*\bjudge\b.*`python -m"):
        comparison.world(tmp_path, tmp_path / "photographs")


def test_probes_learn_from_photographs_of_the_test_set(tmp_path: Path) -> None:
    for part in comparison.PARTS:
        (tmp_path / part).mkdir()
    cache = tmp_path / "work" / "photos.safetensors"
    load_photos(write_zip(tmp_path / "photos.zip", train=1, test=3), cache)
    comparison.save_photographs(tmp_path, ["frog"], tmp_path / "photographs")
    world = comparison.world(tmp_path, tmp_path / "photographs")
    config = parse_probes(["--adapter", str(tmp_path), *world.probe("frog")])
    first = CLASSES.index("frog") * 3
    frogs = load_photos(None, cache)["test"].images[first : first + 3]
    assert torch.equal(to_pixels(read_images(config.output.concept_images)), models.pixels(frogs))
    assert config.budgets.num_concept_images == 50
    assert config.examination.judge_name_or_path == str(tmp_path / "judge")
    assert config.base.pretrained_model_name_or_path == str(tmp_path / "pipeline")
    evaluation = parse_evaluation(["--adapter", str(tmp_path), "--output_dir", "out", *world.evaluate])
    assert len(evaluation.measures.seeds) == comparison.EVALUATION_SEEDS


def test_from_photographs_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is built in a few steps, a class is left out of one more pipeline, and one is erased in
    closed form."""
    run_programs_here(monkeypatch)
    small = dict.fromkeys(build.SIZES["cpu"].steps, 4)
    few = ("--num_images", "32", "--width", "8")
    monkeypatch.setitem(build.SIZES, "cpu", build.Size(small, 6, (8, 8, 8), (16, 16), 1, few))
    monkeypatch.setattr(build, "JUDGE_WIDTHS", (8, 8))
    monkeypatch.setattr(comparison, "EVALUATION_SEEDS", 1)
    base, given = (
        tmp_path / "base",
        ["--size", "cpu", "--data_zip", str(write_zip(tmp_path / "photos.zip", train=8, test=2))],
    )
    stages = ["--stages", "autoencoder", "denoiser", "judge", "clip", "reward"]
    assert command.main(command.parse_config([*given, *stages, "--output_dir", str(base)])) == 0
    assert (
        command.main(command.parse_config([*given, "--without", "airplane", "--output_dir", str(base)])) == 0
    )
    out = tmp_path / "out"
    wanted = ["--methods", "uce", "--classes", "airplane", "--seeds", "0", "--num_images", "2", "--jobs", "1"]
    comparison.main(comparison.parse_config(["--base", str(base), "--output_dir", str(out), *wanted]))
    assert {path.name for path in out.iterdir()} == {
        "base",
        "runs",
        "forgetting",
        "table.md",
        "comparison.json",
        "comparison.png",
        "airplane.png",
        "erased-uce.png",
    }
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert [
        line.split("|")[1].strip()
        for line in text.split("## 2 images")[1].splitlines()
        if line.startswith("| ")
    ][1:] == [
        BASE,
        tables.WITHOUT,
        "UCE",
    ]
    kept = json.loads((out / "comparison.json").read_text())
    (features,) = (out / "forgetting").glob("photographs-*.safetensors")
    assert load_file(features)["features"].shape[1] == build.JUDGE_WIDTHS[-1]
    assert set(kept["forgetting"][BASE]) == set(CLASSES) and set(kept["forgetting"]["UCE"]) == {"airplane"}
    evaluated = kept["runs"][0]
    assert (
        evaluated["adapter"]["NRA"] is not None
        and evaluated["images_per_side"] == 10
        and evaluated["measured_by"]["features"].startswith("judge")
    )
    assert "object FID" in text and evaluated["training"]["iterations"] == 1
