"""UnlearnCanvas with classifiers of its files' format and random weights, and a random pipeline."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from evaluation.__main__ import main, parse_config
from evaluation.unlearncanvas import (
    OBJECTS,
    PROMPT,
    SEEDS,
    THEMES,
    UnlearnCanvasExamination,
    UnlearnCanvasJudge,
    load_vit,
)
from evaluation.weights import UnreadableWeights

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


def head(num_classes: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_large_patch16_224", num_classes=num_classes, **SMALL).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The two files as the benchmark publishes them: a pickle that holds the state under
    `model_state_dict`."""
    directory = tmp_path_factory.mktemp("heads")
    for name, count in (("style", 51), ("object", 20)):
        torch.save(
            {"model_state_dict": head(count, count).state_dict(), "epoch": 3}, directory / f"{name}.pth"
        )
    return [directory / "style.pth", directory / "object.pth"]


@pytest.fixture(scope="module")
def judge(files: list[Path]) -> UnlearnCanvasJudge:
    return UnlearnCanvasJudge.from_files(*files)


def test_the_lists_are_the_benchmarks() -> None:
    assert len(THEMES) == len(set(THEMES)) == 51 and len(OBJECTS) == len(set(OBJECTS)) == 20
    assert (
        sorted(THEMES) == THEMES and sorted(OBJECTS) == OBJECTS
    )  # as in its const.py, where they are sorted
    assert SEEDS == (188, 288, 588, 688, 888) and THEMES[38] == "Seed Images"
    assert PROMPT.format(style="Van Gogh", object="Cats") == "A Cats image in Van Gogh style."


def test_images_are_judged_as_the_benchmarks_script_does(
    judge: UnlearnCanvasJudge, files: list[Path]
) -> None:
    images = [Image.effect_noise((40, 40), 50 + 20 * i).convert("RGB") for i in range(3)]
    preprocess = transforms.Compose(
        [transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )
    for domain, path, names in zip(("style", "object"), files, (THEMES, OBJECTS), strict=True):
        model = head(len(names), 0)
        model.load_state_dict(torch.load(path, weights_only=True)["model_state_dict"])
        with torch.no_grad():
            expected = [names[int(model(preprocess(image)[None]).argmax())] for image in images]
        assert [seen[domain] for seen in judge.verdicts(images)] == expected
    assert judge.embed(images).shape == (3, 64)


def test_a_real_vit_large_fits_its_own_state() -> None:
    """The sizes that are read off a state dict make timm's ViT-L/16 again."""
    with torch.device("meta"):
        real = timm.create_model("vit_large_patch16_224.augreg_in21k", pretrained=False)
        real.head = torch.nn.Linear(1024, 51)
        again = timm.create_model(
            "vit_large_patch16_224",
            img_size=224,
            patch_size=16,
            embed_dim=1024,
            depth=24,
            num_heads=16,
            num_classes=51,
        )
    assert str(real) == str(again)


def test_files_that_are_no_such_classifier_are_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{files[1].name}.*\b20\b.*\b51\b"):
        UnlearnCanvasJudge.from_files(files[1], files[1])
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_vit(tmp_path / "other.safetensors", 51)
    harmful = tmp_path / "harmful.pth"
    harmful.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(UnreadableWeights, match=r"harmful\.pth"):
        load_vit(harmful, 51)
    assert not (Path.cwd() / "ran").exists()
    with pytest.raises(UnreadableWeights, match=r"absent\.pth"):
        load_vit(tmp_path / "absent.pth", 51)
    save_file(head(51, 0).state_dict(), tmp_path / "style.safetensors")
    assert load_vit(tmp_path / "style.safetensors", 51).head.out_features == 51


class Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


def test_the_whole_benchmark(judge: UnlearnCanvasJudge) -> None:
    examination = UnlearnCanvasExamination(judge, ["Van Gogh style"], "heads")
    assert len(examination.prompts) == 51 * 20 and sum(examination.forget) == 20
    assert (
        examination.prompts[0] == "A Architectures image in Abstractionism style."
        and examination.protocol == "unlearncanvas"
    )
    assert (examination.seeds, examination.num_inference_steps, examination.guidance_scale) == (
        SEEDS,
        100,
        9.0,
    )
    sketch = UnlearnCanvasExamination(judge, ["Artist Sketch style"], "heads")
    assert sketch.targets == {"style": {"Artist Sketch"}}


def test_both_conventions_of_seed_images(judge: UnlearnCanvasJudge) -> None:
    """A judge that takes every photograph for Rust: the headline counts it, the figures beside it do not."""
    examination = UnlearnCanvasExamination(judge, ["Cats"], "heads")
    verdicts = [
        cell.labels | ({"style": "Rust"} if cell.labels["style"] == "Seed Images" else {})
        for cell in examination.cells
    ]
    ids = list(range(len(verdicts)))
    assert examination.figures(verdicts, ids)["CRA"] == pytest.approx(100 * 50 / 51)
    kept = examination.without["without_seed_images"]
    assert len(kept) == 50 * 20
    assert examination.figures([verdicts[i] for i in kept], kept)["CRA"] == 100


def test_the_lite_subset_is_called_one(judge: UnlearnCanvasJudge) -> None:
    lite = UnlearnCanvasExamination(judge, ["Rust style"], "heads", lite=True)
    themes, objects = ({cell.labels[domain] for cell in lite.cells} for domain in ("style", "object"))
    assert (
        {"Rust", "Seed Images"} <= themes and len(themes) <= 12 and len(objects) == 5 and len(lite.seeds) == 2
    )
    unchanged = lite.protocol
    assert re.search(rf"lite\b.*\b{len(themes)}\b.*\b5\b.*\b2 seeds\b", unchanged)
    lite.note_changes(None, 100, 9.0)
    assert lite.protocol == unchanged
    lite.note_changes([1], 2, None)
    changes = lite.protocol.removeprefix(unchanged)
    assert re.search(r"seeds \(1,\).*\(188, 288\).*steps 2\b.*\b100$", changes) and "guidance" not in changes


def test_the_command(files: list[Path], adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    given = [
        "--adapter",
        str(adapter_dir),
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--protocol",
        "unlearncanvas-lite",
    ]
    given += [
        "--style_classifier",
        str(files[0]),
        "--object_classifier",
        str(files[1]),
        "--num_inference_steps",
        "1",
        "--seeds",
        "188",
    ]
    given += ["--base_images", str(tmp_path / "shared"), "--fid_features", "none"]
    main(parse_config([*given, "--output_dir", str(tmp_path / "out")]))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["guidance_scale"] == 9.0 and results["seeds"] == [188]
    assert re.search(r"lite\b.*steps 1\b.*\b100\b", results["protocol"])
    for side in ("base", "adapter"):
        assert (
            results[side]["images"]["CRA"]
            == results["images_per_side"]
            > results[side]["without_seed_images"]["images"]["CRA"]
        )
    assert len(list((tmp_path / "shared").glob("*.jpeg"))) == results["images_per_side"]
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["weight-1"]
