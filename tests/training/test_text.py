from __future__ import annotations

import torch

from training.text import with_others

INK = {"a cat in ink style": "a dog in ink style", "a cat in oil style": "a dog in oil style"}
STYLE = {"a cat in ink style": "a cat in oil style", "a rose in ink style": "a rose in oil style"}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_of_two_things_the_concept_alone_goes() -> None:
    kept = ["a rose in ink style", "a tree in oil style"]
    assert with_others(INK, kept, 1, generator()) == {
        "a cat and a rose in ink style": "a dog and a rose in ink style",
        "a rose and a cat in ink style": "a rose and a dog in ink style",
        "a cat and a tree in oil style": "a dog and a tree in oil style",
        "a tree and a cat in oil style": "a tree and a dog in oil style",
    }


def test_two_things_in_the_style_lose_it_together() -> None:
    found = with_others(STYLE, ["a rose in oil style"], 1, generator())
    assert found == {
        "a cat and a rose in ink style": "a cat and a rose in oil style",
        "a rose and a cat in ink style": "a rose and a cat in oil style",
    }


def test_what_is_kept_stays_together_too() -> None:
    kept = {text: text for text in ("a rose in ink style", "a tree in ink style", "a tower")}
    found = with_others(kept, (), 2, generator())
    assert found and all(text == goal for text, goal in found.items())
    assert "a rose and a tree in ink style" in found


def test_a_text_alone_is_asked_for_with_nothing() -> None:
    assert with_others({"a cat": "a dog"}, (), 2, generator()) == {}


def test_the_generator_decides() -> None:
    kept = [f"a {thing} in ink style" for thing in ("rose", "tree", "boat", "house", "star")]
    found = [with_others(INK, kept, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
