from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import CLIPTokenizer

import canvas
from pipelines.alignment import counterparts


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
