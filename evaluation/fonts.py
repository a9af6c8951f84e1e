"""Fonts for texts of users in pictures: an installed one for every character, as far as there are."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

USUAL = "DejaVu Sans"
"""Ships with matplotlib: Latin, Greek, Cyrillic, Arabic and more, but neither CJK nor most emoji."""
UNUSABLE = ("Color", "Last Resort")
"""In the names of fonts that matplotlib cannot draw with, and that have boxes for everything."""


def families_for(text: str) -> tuple[list[str], set[str]]:
    """The families of installed fonts that together draw a text, the usual one first, and those of its
    characters that none has."""
    families, lacking = [USUAL], {c for c in visible(text) if not c.isspace()}
    lacking -= {c for c in lacking if ord(c) in _characters(fontManager.findfont(USUAL))}
    for entry in sorted(fontManager.ttflist, key=_preference):
        if not lacking:
            break
        if entry.name in families or any(word in entry.name for word in UNUSABLE):
            continue
        if has := {c for c in lacking if ord(c) in _characters(entry.fname)}:
            families.append(entry.name)
            lacking -= has
    return families, lacking


def visible(text: str) -> str:
    """Without joiners, marks of direction, selectors of variants and control characters, which fonts draw as
    boxes."""
    kept = (c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return "".join(c for c in kept if not 0xFE00 <= ord(c) <= 0xFE0F)


def columns(text: str) -> int:
    """How wide a text is in letters of a Latin alphabet: an ideograph counts twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _preference(entry: FontEntry) -> tuple[bool, bool, str]:
    """Upright and of usual weight before all others."""
    return entry.style != "normal", str(entry.weight) not in ("400", "normal", "regular"), entry.name


@lru_cache(maxsize=64)
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has a glyph for; none if it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
