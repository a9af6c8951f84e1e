"""The concept's name within a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward.concept.vocabulary import plain_name
from reward.concept.words import FUNCTION_WORDS, GENERIC_WORDS


def find_name(prompt: str, concepts: Sequence[str]) -> str | None:
    """The part of the prompt that names one of the concepts: the whole name, else its longest word in the
    prompt; None if there is none. Case and a plural s are ignored."""
    for concept in concepts:
        found = _search(plain_name(concept), prompt)
        if found:
            return found
    words = {
        word
        for concept in concepts
        for word in re.findall(r"\w+", concept)
        if word.casefold() not in GENERIC_WORDS | FUNCTION_WORDS
    }
    return next(
        (
            found
            for word in sorted(words, key=lambda word: (-len(word), word))
            if (found := _search(word, prompt))
        ),
        None,
    )


def renamed(prompt: str, concepts: Sequence[str], name: str) -> str:
    """The prompt with another name for the concept, after it if the prompt names none."""
    found = find_name(prompt, concepts)
    return f"{prompt}, {name}" if found is None else prompt.replace(found, name)


def unnamed(prompt: str, concepts: Sequence[str]) -> str:
    """The prompt without the concept's name."""
    found = find_name(prompt, concepts)
    return prompt if found is None else " ".join(prompt.replace(found, " ").split())


def _search(name: str, prompt: str) -> str | None:
    found = re.search(rf"\b{re.escape(name)}s?\b", prompt, re.IGNORECASE)
    return found and found.group()
