from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import CLIPTokenizer

import canvas
from pipelines.alignment import aligned, counterparts


def said(tokenizer: CLIPTokenizer, text: str, states: slice) -> list[str]:
    ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length).input_ids
    return tokenizer.convert_ids_to_tokens(ids[states])


def test_texts_are_aligned_at_their_ends() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(Path(canvas.PIPELINE) / "tokenizer")
    window = tokenizer.model_max_length
    texts = ("a very happy day", "a night")
    here, there = aligned(tokenizer, texts, window)
    assert here.stop - here.start == there.stop - there.start
    assert said(tokenizer, texts[0], here)[:2] == ["happy</w>", "day</w>"]
    assert said(tokenizer, texts[1], there)[:2] == ["a</w>", "night</w>"]
    assert said(tokenizer, texts[0], here)[2] == said(tokenizer, texts[1], there)[2] == "<|endoftext|>"
    assert here.stop == window and there.stop < window  # the shorter text ends earlier, its padding is longer


def test_without_the_text_its_last_token_is_the_first() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(Path(canvas.PIPELINE) / "tokenizer")
    texts = ("a very happy day", "a night")
    here, there = aligned(tokenizer, texts, tokenizer.model_max_length, whole=False)
    assert (
        said(tokenizer, texts[0], here)[0] == "day</w>" and said(tokenizer, texts[1], there)[0] == "night</w>"
    )


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("a cat", "a cat"), [0, 1, 2, 3, 4, 5, 6, 7]),
        # "dog" has a token more than "cat" here.
        (("a cat in ink", "a dog in ink"), [0, 1, 2, 4, 5, 6, 7, 7]),
        (("a dog in ink", "a cat in ink"), [0, 1, 2, 2, 3, 4, 5, 6]),
        (("a cat in ink", "a cat"), [0, 1, 2, 3, 3, 3, 4, 5]),
        (("a cat", "a cat in ink"), [0, 1, 2, 5, 6, 7, 7, 7]),
        (("", "a cat"), [0, 3, 4, 5, 6, 7, 7, 7]),
    ],
)
def test_what_two_texts_share_stands_for_itself(texts: tuple[str, str], found: list[int]) -> None:
    words = {"cat": [1], "dog": [2, 3], "a": [4], "in": [5], "ink": [6]}

    def tokenizer(text: str, **given: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0, *(i for word in text.split() for i in words[word]), 9])

    assert counterparts(tokenizer, texts, 8) == found  # type: ignore[arg-type]


def test_a_text_that_fills_the_window_has_as_many_counterparts() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(Path(canvas.PIPELINE) / "tokenizer")
    window = tokenizer.model_max_length
    for texts in (("cat " * 100, "a dog"), ("a dog", "cat " * 100)):
        found = counterparts(tokenizer, texts, window)
        assert len(found) == window and 0 <= min(found) <= max(found) < window and found == sorted(found)
