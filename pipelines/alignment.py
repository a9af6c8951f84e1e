"""Which states of two texts stand for one another."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def counterparts(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], window: int) -> list[int]:
    """For each of the first text's `window` states that of the other which stands for it.

    What both begin with and end in stands for itself, and so does what fills the window after them, as far as
    it goes. What lies between is spread over what lies between in the other, in order.
    """
    ids, others = (tokenizer(text, truncation=True, max_length=window).input_ids for text in texts)
    shorter = min(len(ids), len(others))
    start = next((i for i in range(shorter) if ids[i] != others[i]), shorter)
    most = shorter - start
    end = next((i for i in range(most) if ids[-1 - i] != others[-1 - i]), most)
    between, of_other = len(ids) - start - end, len(others) - start - end
    middle = [start + i * of_other // between for i in range(between)]
    after = [min(i + len(others) - len(ids), window - 1) for i in range(start + between, window)]
    return [*range(start), *middle, *after][:window]
