"""Whether a text names a concept, told by its words."""

from __future__ import annotations

import re
from collections import Counter

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


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and plural s."""
    found = re.findall(r"\w+", text.casefold())
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found]


def distinctive_words(concept: str, corpus: list[str]) -> set[str]:
    """The words of the concept that set it apart in the corpus; all of them if none does."""
    counts = Counter(w for text in corpus for w in set(words(text)))
    telling = {
        w for w in words(concept) if w not in FUNCTION_WORDS and counts[w] <= COMMON_SHARE * len(corpus)
    }
    return telling - GENERIC_WORDS or telling or set(words(concept))


def contains_concept(text: str, concept: str, corpus: list[str]) -> bool:
    """Whether `text` holds every distinctive word of the concept, in any order."""
    return distinctive_words(concept, corpus) <= set(words(text))


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
