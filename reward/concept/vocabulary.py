"""Names of many things a text-to-image model draws, by kind, and what one asks a model for to see them.

The themes and objects of UnlearnCanvas (arXiv 2402.11846) are among the styles and objects; the classes of
ImageNet come with open_clip.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from reward.concept.words import FUNCTION_WORDS, GENERIC_WORDS, words

KINDS = ("style", "object", "identity", "unsafe")
FILES = {
    "style": ("styles", "artists"),
    "object": ("objects",),
    "identity": ("identities",),
    "unsafe": ("unsafe",),
}

SUBJECTS = (
    "a landscape",
    "a house",
    "a portrait of a woman",
    "a still life with flowers",
    "a city street",
    "a tree",
)
STYLE_WORDINGS = ("{subject} in {name} style", "{subject} in the style of {name}")
WORDINGS = {
    "object": (
        "{a_name}",
        "a photo of {a_name}",
        "a picture of {a_name}",
        "a painting of {a_name}",
        "a close-up of {a_name}",
        "{a_name} in a landscape",
    ),
    "identity": (
        "{name}",
        "a photo of {name}",
        "a portrait of {name}",
        "a drawing of {name}",
        "{name} in a city street",
        "{name}, smiling",
    ),
    "unsafe": (
        "{name}",
        "a photo of {name}",
        "an image of {name}",
        "a painting of {name}",
        "{name}, detailed",
    ),
}
"""How one asks for a thing of each kind; a style is asked for with a subject."""


@cache
def vocabulary(kind: str) -> tuple[str, ...]:
    """Names of one kind: one of `KINDS`, or "safe" (what an unsafe image may become)."""
    names = [name for file in FILES.get(kind, (kind,)) for name in _lines(file)]
    if kind == "object":
        names += IMAGENET_CLASSNAMES
    return tuple(dict.fromkeys(names))


def _lines(file: str) -> list[str]:
    return (Path(__file__).parent / "vocabularies" / f"{file}.txt").read_text(encoding="utf-8").splitlines()


def plain_name(concept: str) -> str:
    """The concept without the words around its name: "paintings by Van Gogh" and "Van Gogh style" are both
    "Van Gogh"."""
    parts = concept.split()
    idle = [not set(words(p)) - GENERIC_WORDS - FUNCTION_WORDS for p in parts]
    kept = [i for i, skip in enumerate(idle) if not skip]
    return " ".join(parts[kept[0] : kept[-1] + 1]) if kept else concept


def with_article(name: str) -> str:
    """The name as one says it: "cat" becomes "a cat", names that bring an article keep it."""
    if name.split()[0].casefold() in {"a", "an", "the"}:
        return name
    return f"{'an' if name[0].casefold() in 'aeiou' else 'a'} {name}"


def with_other(prompt: str, concept: str, name: str) -> str | None:
    """The prompt with another name in the concept's place, and with its article; None if it does not say the
    concept's name."""
    named = re.compile(rf"\b(an? )?{re.escape(plain_name(concept))}\b", re.IGNORECASE)
    found = named.search(prompt)
    if not found:
        return None
    said = with_article(name) if found[1] and name else name
    return prompt[: found.start()] + said + prompt[found.end() :]


def asking_for(kind: str, concept: str) -> list[str]:
    """Prompts that ask for a concept of this kind, the wordings in a fixed order."""
    if kind == "style":
        return [
            wording.format(subject=subject, name=plain_name(concept))
            for subject in SUBJECTS
            for wording in STYLE_WORDINGS
        ]
    name = concept if kind == "unsafe" else plain_name(concept)
    return [wording.format(name=name, a_name=with_article(name)) for wording in WORDINGS[kind]]


def without_concept(kind: str, neighbours: list[str]) -> list[list[str]]:
    """For each prompt of `asking_for` what its image may become: the same asked for the neighbours and,
    for a style, the bare subject."""
    others = [asking_for(kind, name) for name in neighbours]
    bare = (
        [[subject] for subject in SUBJECTS for _ in STYLE_WORDINGS]
        if kind == "style"
        else [[] for _ in WORDINGS[kind]]
    )
    return [row + [prompts[i] for prompts in others] for i, row in enumerate(bare)]


def general_prompts() -> list[str]:
    """Prompts over all vocabularies but the unsafe one: what a reward predictor of a general model is
    trained on by default."""
    styles = [
        asking_for("style", name)[i % (2 * len(SUBJECTS))] for i, name in enumerate(vocabulary("style"))
    ]
    identities = [f"a portrait of {name}" for name in vocabulary("identity")]
    objects = [f"a photo of {with_article(name)}" for name in vocabulary("object")]
    return list(
        dict.fromkeys([*SUBJECTS, *vocabulary("scenes"), *vocabulary("safe"), *styles, *identities, *objects])
    )
