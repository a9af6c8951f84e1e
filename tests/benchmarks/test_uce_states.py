from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

import canvas
from benchmarks.baselines.uce import aligned


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
