"""Whether a text names a concept, told by its words."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Set as AbstractSet
from functools import cache

from common.texts import folded

COMMON_SHARE = 0.5
"""A word found in more than this share of the known prompts does not tell a concept from anything else."""
FUNCTION_WORDS = frozenset(
    ["a", "an", "the", "of", "in", "by", "on", "with", "and", "or", "for", "to", "from", "at"]
)
"""These never do: "the cat" is found in prompts that say "a cat"."""
GENERIC_WORDS = frozenset(
    [
        "style",
        "art",
        "artwork",
        "painting",
        "picture",
        "image",
        "photo",
        "photograph",
        "drawing",
        "illustration",
        "work",
        "manner",
    ]
)
"""Nor do these, where another word does: "paintings by Van Gogh" is found in "a tree image in Van Gogh
style"."""


SPACELESS = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL"),
    *("THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER"),
)
"""How Unicode names the letters of scripts in which a word need not end with a space."""


@cache
def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation and plural endings; a run of letters of a script without spaces is
    one word."""
    found: list[str] = []
    before = ""
    for char in folded(text):
        # A mark belongs to the letter before it, as vowels of Hindi do.
        kind = before if unicodedata.category(char).startswith("M") else _kind(char)
        if kind and kind == before:
            found[-1] += char
        elif kind:
            found.append(char)
        before = kind
    return tuple(map(_singular, found))


def _singular(word: str) -> str:
    """foxes -> fox, witches -> witch, cats -> cat; glasses are not made of glass."""
    if len(word) > 4 and word.endswith(("xes", "shes", "tches")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@cache
def _kind(char: str) -> str:
    """Of what kind of word a character is part; empty if of none."""
    if not (char.isalnum() or char == "_"):
        return ""
    return "spaceless" if unicodedata.name(char, "").startswith(SPACELESS) else "spaced"


def says(text: str, wanted: AbstractSet[str]) -> bool:
    """Whether a text holds all of some words, in any order; one of a script without spaces may stand within
    others."""
    found = set(words(text))
    return all(word in found or (_kind(word[0]) == "spaceless" and word in folded(text)) for word in wanted)


def distinctive_words(concept: str, corpus: list[str]) -> set[str]:
    """The words of the concept that set it apart in the corpus; all of them if none does."""
    counts = {w: sum(says(text, {w}) for text in corpus) for w in set(words(concept))}
    telling = {w for w in counts if w not in FUNCTION_WORDS and counts[w] <= COMMON_SHARE * len(corpus)}
    return telling - GENERIC_WORDS or telling or set(counts)


def contains_concept(text: str, concept: str, corpus: list[str]) -> bool:
    """Whether `text` holds every distinctive word of the concept, in any order."""
    return says(text, distinctive_words(concept, corpus))


def nearest_without(prompt: str, concepts: list[str], candidates: list[str], corpus: list[str]) -> list[str]:
    """The candidates that share the most words with the prompt once the concepts' words are taken out of
    it."""
    removed = set().union(*(distinctive_words(c, corpus) for c in concepts))
    kept = set(words(prompt)) - removed
    overlap = [len(kept & set(words(candidate))) for candidate in candidates]
    return [candidate for candidate, n in zip(candidates, overlap, strict=True) if n == max(overlap)]


def shared_words(texts: list[str], corpus: list[str]) -> list[str]:
    """The distinctive words that most of `texts` have in common, in their order: what these texts are
    about and the corpus is not."""
    counts = Counter(w for text in texts for w in set(words(text)))
    common = {w for w, n in counts.items() if 2 * n > len(texts)}
    everywhere = Counter(w for text in corpus for w in set(words(text)))
    telling = {w for w in common if w not in FUNCTION_WORDS and everywhere[w] <= COMMON_SHARE * len(corpus)}
    first = next((text for text in texts if telling <= set(words(text))), "")
    return [w for w in words(first) if w in telling]
