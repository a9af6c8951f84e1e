"""People's notes in a card: the text between two comments is kept in every new card."""

from __future__ import annotations

import re

BEGIN = "<!-- notes: what you write between this comment and the next is kept when the card is made or uploaded again -->"
END = "<!-- end of notes -->"

FIRST = re.compile(r"^<!-- notes: [^\n]*-->[ \t]*\r?\n", re.MULTILINE)
LAST = f"\n{END}"


def notes_section(notes: str) -> str:
    """The two comments and the text between them."""
    return f"{BEGIN}\n\n{notes}\n\n{END}" if notes else f"{BEGIN}\n\n{END}"


def read_notes(card: str) -> str:
    """The notes in a card, or an empty text."""
    found = _section(card)
    return card[found[1] : found[2]].strip() if found else ""


def with_notes(card: str, notes: str) -> str:
    """The card with these notes in place of its own; a card without the two comments gets them at its end."""
    if found := _section(card):
        return f"{card[: found[0]]}{notes_section(notes)}{card[found[3] :]}"
    return f"{card.rstrip()}\n\n{notes_section(notes)}\n"


def _section(card: str) -> tuple[int, int, int, int] | None:
    """Start and end of the first comment, and of the last; None without both. It searches from each end, so
    that no card takes long."""
    first = FIRST.search(card)
    last = card.rfind(LAST, first.end() - 1) if first else -1
    return (first.start(), first.end(), last + 1, last + len(LAST)) if first and last >= 0 else None


def merge_notes(theirs: str, ours: str) -> str:
    """Both, unless one contains the other."""
    if ours in theirs:
        return theirs
    return ours if theirs in ours else f"{theirs}\n\n{ours}"
