"""The part of a card that belongs to people: what stands between two comments outlives every new card."""

from __future__ import annotations

import re

BEGIN = "<!-- notes: what you write between this comment and the next is kept when the card is made or uploaded again -->"
END = "<!-- end of notes -->"

SECTION = re.compile(r"^<!-- notes: [^\n]*-->[ \t]*\r?\n(.*)^<!-- end of notes -->", re.DOTALL | re.MULTILINE)


def notes_section(notes: str) -> str:
    """The two comments and what stands between them."""
    return f"{BEGIN}\n\n{notes}\n\n{END}" if notes else f"{BEGIN}\n\n{END}"


def read_notes(card: str) -> str:
    """What people wrote into a card, or an empty text."""
    found = SECTION.search(card)
    return found[1].strip() if found else ""


def with_notes(card: str, notes: str) -> str:
    """The card with these notes in place of its own; one without the two comments gets them at its end."""
    if SECTION.search(card):
        return SECTION.sub(lambda _: notes_section(notes), card, count=1)
    return f"{card.rstrip()}\n\n{notes_section(notes)}\n"


def merge_notes(theirs: str, ours: str) -> str:
    """Both, unless one holds the other."""
    if ours in theirs:
        return theirs
    return ours if theirs in ours else f"{theirs}\n\n{ours}"
