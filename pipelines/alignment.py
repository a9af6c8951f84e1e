"""Which states of two texts stand for one another."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def aligned(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], window: int, *, whole: bool = True
) -> tuple[slice, slice]:
    """The states of either text that stand for one another, from the ends of the texts on: as many before
    the last tokens as the shorter text has, and what fills the window after them.

    Args:
        window: how many states each text has.
        whole: with the states before the last token; else only those that have read the whole text.
    """
    begin = len(tokenizer("").input_ids) - 1
    last, of_other = (len(tokenizer(text).input_ids) - 2 for text in texts)  # the end-of-text token follows
    before = min(last, of_other) - begin if whole else 0
    after = window - max(last, of_other)
    return slice(last - before, last + after), slice(of_other - before, of_other + after)
