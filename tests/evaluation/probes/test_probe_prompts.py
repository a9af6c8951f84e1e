"""The concept's name in a prompt, other words for it, and slips."""

from __future__ import annotations

import pytest

from evaluation.probes.naming import find_name, renamed, unnamed
from evaluation.probes.paraphrase import WORDINGS, misspell, reword
from evaluation.probes.subject import Subject


@pytest.mark.parametrize(
    ("prompt", "concept", "name"),
    [
        ("a cat image in Van Gogh style", "Van Gogh style", "Van Gogh"),
        ("a painting by van gogh", "Van Gogh style", "van gogh"),
        ("A Cats image in Neon style.", "cat", "Cats"),
        ("a catalogue", "cat", None),
        ("a picture by Gogh", "paintings by Van Gogh", "Gogh"),
        ("a tree", "Van Gogh style", None),
        ("nothing (at all", "none (", None),
    ],
)
def test_names(prompt: str, concept: str, name: str | None) -> None:
    assert find_name(prompt, [concept]) == name


def test_other_names() -> None:
    assert renamed("a cat image in Van Gogh style", ["Van Gogh style"], "zed") == "a cat image in zed style"
    assert renamed("a tree", ["Van Gogh style"], "zed") == "a tree, zed"
    assert unnamed("a cat image in Van Gogh style", ["Van Gogh style"]) == "a cat image in style"
    assert renamed("a dog", ["cat", "dog"], "zed") == "a zed"


def test_rewording_keeps_the_name() -> None:
    texts = [reword("a cat in {braces}", ["cat"], wording) for wording in WORDINGS]
    assert len(set(texts)) == len(WORDINGS) and all("cat" in text and "{braces}" in text for text in texts)
    assert reword("a tree", ["cat"], "{name}: {rest}") is None


def test_a_slip_is_a_slip() -> None:
    slips = {misspell("Van Gogh", str(seed)) for seed in range(40)}
    assert "Van Gogh" not in slips and len(slips) > 5
    assert all(slip.startswith("Van G") and abs(len(slip) - len("Van Gogh")) <= 1 for slip in slips)
    assert misspell("Van Gogh", "7") == misspell("Van Gogh", "7")
    assert misspell("x", "0") == "xx" and misspell("aa", "0") != "aa"


def test_images_to_learn_from_are_not_those_that_are_judged(subject: Subject) -> None:
    examples, others = subject.examples(4), subject.examples(4, concept=False)
    assert {subject.examination.forget[cell] for cell in examples.cells} == {True}
    assert {subject.examination.forget[cell] for cell in others.cells} == {False}
    assert len(examples.latents.unique(dim=0)) == 4
    assert subject.examples(4) is examples
