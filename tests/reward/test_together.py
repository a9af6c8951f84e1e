from __future__ import annotations

import pytest

from reward.concept.together import asked_together, partners, shared_end


@pytest.mark.parametrize(
    ("text", "other", "both", "alike"),
    [
        ("a cat in ink style", "a rose in ink style", "a cat and a rose in ink style", 3),
        ("a cat in ink style", "a cat in oil style", "a cat in ink and a cat in oil style", 1),
        ("a photo of a cat", "a photo of a dog", "a photo of a cat and a photo of a dog", 0),
        ("cat", "a cat", "cat and a cat", 0),
        ("a cat", "a cat", "a and a cat", 1),
    ],
)
def test_what_two_texts_end_in_is_said_once(text: str, other: str, both: str, alike: int) -> None:
    assert asked_together(text, other) == both
    assert shared_end(text, other) == shared_end(other, text) == alike


def test_partners_end_most_as_the_text_does() -> None:
    others = [
        "a dog in ink style",
        "a cat in ink style",
        "a dog in oil style",
        "a tree",
        "a bird in ink style",
    ]
    assert partners("a cat in ink style", others) == [0, 4]
    assert partners("two houses", others) == [0, 1, 2, 3, 4]
    assert partners("a tree", ["a tree"]) == [] and partners("a tree", []) == []
