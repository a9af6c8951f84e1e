"""Which classes a concept names, which prompts are drawn, and what the judge's and the teacher's verdicts
come to."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from PIL import Image

from evaluation.examination import (
    JudgeExamination,
    TeacherExamination,
    default_seeds,
    nearest_classes,
    target_classes,
)
from evaluation.judge import Judge
from reward.concept import ConceptSpec

DOMAINS = {
    "style": ["Van Gogh", "Mosaic", "Pop Art", "Sketch", "Pencil Sketch"],
    "object": ["cat", "car", "Glass"],
}


@pytest.mark.parametrize(
    ("concepts", "expected"),
    [
        (["Van Gogh style"], {"style": {"Van Gogh"}}),
        (["the style of van gogh"], {"style": {"Van Gogh"}}),
        (["cats"], {"object": {"cat"}}),
        (["glasses", "glass"], None),
        (["glass"], {"object": {"Glass"}}),
        (["cat", "cars"], {"object": {"cat", "car"}}),
        (["a cat", "pop-art"], {"object": {"cat"}, "style": {"Pop Art"}}),
        (["art"], None),
        (["cartoon"], None),
        (["pencil sketch"], {"style": {"Pencil Sketch"}}),  # and not Sketch
        (["sketch"], {"style": {"Sketch"}}),
    ],
)
def test_target_classes(concepts: list[str], expected: dict[str, set[str]] | None) -> None:
    if expected is None:
        with pytest.raises(
            ValueError,
            match="style: Van Gogh, Mosaic, Pop Art, Sketch, Pencil Sketch; object: cat, car, Glass",
        ):
            target_classes(DOMAINS, concepts)
    else:
        assert target_classes(DOMAINS, concepts) == expected


def test_judge_draws_every_combination(tiny_judge: Judge) -> None:
    examination = JudgeExamination(tiny_judge, ["Van Gogh style"], "tiny")
    assert examination.prompts == [
        "a cat image in Van Gogh style",
        "a car image in Van Gogh style",
        "a cat image in Mosaic style",
        "a car image in Mosaic style",
    ]
    assert examination.forget == [True, True, False, False]


def test_judge_verdicts(tiny_judge: Judge) -> None:
    examination = JudgeExamination(tiny_judge, ["cat"], "tiny")
    verdicts = examination.examine([Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")], [0, 1])
    assert all(set(v) == {"style", "object"} and v["object"] in ("cat", "car") for v in verdicts)
    classes = [("Van Gogh", "car"), ("Van Gogh", "car"), ("Mosaic", "cat"), ("Van Gogh", "car")]
    metrics = examination.metrics([{"style": s, "object": o} for s, o in classes], [0, 1, 2, 3])
    assert (metrics["UA"], metrics["IRA"], metrics["CRA"]) == (50, 100, 75)


@pytest.mark.parametrize("concept", ["Van Gogh", "cat"])
def test_showcase_shows_as_many_classes_as_it_can(concept: str) -> None:
    domains = {"style": ["Van Gogh", "Mosaic", "Neon", "Sketch"], "object": ["cat", "car", "tree", "boat"]}
    examination = JudgeExamination(Judge(domains, "{object} {style}", 16, widths=(4, 8)), [concept], "tiny")
    chosen = examination.showcase(4)
    assert [examination.forget[i] for i in chosen] == [True] * 4 + [False] * 4
    retained = [examination.classes[i] for i in chosen[4:]]
    assert sum(len({row[domain] for row in retained}) for domain in domains) == 7  # of 4 and 3, or 3 and 4


class StubTeacher:
    """Embeds a text as the words it holds and a plain image as those of its colour's text."""

    words = ("red", "cat", "dog", "fox")
    colours: ClassVar = {(255, 0, 0): "red cat", (0, 255, 0): "red dog", (0, 0, 255): "red fox"}

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        held = torch.tensor([[float(word in text.split()) for word in self.words] for text in texts])
        return torch.nn.functional.normalize(held, dim=-1)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        colours = ((pixels[:, :, 0, 0] + 1) * 127.5).round().int().tolist()
        return self.encode_text([self.colours[tuple(colour)] for colour in colours])


def test_teacher_figures() -> None:
    spec = ConceptSpec(["cat"], ["red cat"], ["red dog", "red fox"], [["red dog", "red fox"]])
    examination = TeacherExamination(StubTeacher(), spec)
    assert "not independent" in examination.name
    assert examination.prompts == ["red cat", "red dog", "red fox"]
    cat, dog, fox = (Image.new("RGB", (4, 4), colour) for colour in StubTeacher.colours)
    expected = {"CRA": None, "CRA_retained": None, "CRA_forgotten": None, "NRA": None}
    for images, metrics in [
        ([cat, dog, fox], {"UA": 0, "IRA": 100}),
        ([dog, dog, fox], {"UA": 100, "IRA": 100}),
        ([fox, dog, cat], {"UA": 100, "IRA": 50}),
    ]:
        verdicts = examination.examine(images, [0, 1, 2])
        assert examination.metrics(verdicts, [0, 1, 2]) == metrics | expected
    assert examination.per_class(verdicts, [0, 1, 2]) == {
        "prompt": {"red cat": 0, "red dog": 100, "red fox": 0}
    }
    assert examination.showcase(1) == [0, 1]


@pytest.mark.parametrize(
    ("forget", "retain", "of_forget"),
    [(8, 56, 3), (1, 128, 24), (2, 2, 12), (5, 5, 5), (100, 10, 3)],  # the bundled canvas is the first
)
def test_by_default_the_concept_has_at_least_24_images(forget: int, retain: int, of_forget: int) -> None:
    seeds = default_seeds([True] * forget + [False] * retain)
    assert seeds == [list(range(of_forget))] * forget + [[0, 1, 2]] * retain


def test_neighbours_are_the_nearest_classes_in_a_text_space_or_those_named(tiny_judge: Judge) -> None:
    domains = {"style": ["red", "Mosaic"], "object": ["cat", "dog", "fox", "cat dog"]}
    near = nearest_classes(
        domains, "{style} {object}", {"object": {"cat"}}, StubTeacher().encode_text, count=1
    )
    assert near == {"object": {"cat dog"}}
    apart = JudgeExamination(
        Judge(domains, "{style} {object}", 16, widths=(4, 8)), ["cat"], "tiny", neighbours=["fox"]
    )
    assert apart.neighbours == {"object": {"fox"}}
    verdicts = [
        {"style": c["style"], "object": "dog" if c["object"] == "fox" else c["object"]} for c in apart.classes
    ]
    metrics = apart.metrics(verdicts, list(range(8)))
    assert metrics["NRA"] == 0 and metrics["IRA"] == pytest.approx(200 / 3)
