"""Texts that ask for two things at once, made of texts that ask for one."""

from __future__ import annotations

from collections.abc import Sequence


def shared_end(text: str, other: str) -> int:
    """How many words two texts end in alike, of which each has more."""
    words, others = text.split(), other.split()
    most = min(len(words), len(others)) - 1
    return next((n for n in range(most) if words[-1 - n] != others[-1 - n]), most)


def asked_together(text: str, other: str) -> str:
    """Both in one picture: "a cat in ink" and "a rose in ink" are "a cat and a rose in ink"."""
    words = text.split()
    return " ".join([*words[: len(words) - shared_end(text, other)], "and", other])


def partners(text: str, others: Sequence[str]) -> list[int]:
    """Which of the others end most as the text does, but for the text itself: what is alike is said once."""
    ends = [-1 if other == text else shared_end(text, other) for other in others]
    return [i for i, end in enumerate(ends) if end == max(ends) and end >= 0]
