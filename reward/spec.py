"""From the words of a concept to what training needs: forget prompts, retain prompts, anchors.

The prompts a base model is known to draw (those its reward predictor was trained on) are divided by whether
they name the concept. The anchors of a forget prompt are the retain prompts that say the same without the
concept, so that "a tree image in Van Gogh style" is told apart from trees in other styles, and
"a cat image in Mosaic style" from other objects in mosaic.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

WORDINGS = ["{concept}", "a picture of {concept}", "an image of {concept}", "a photo of {concept}", "a painting of {concept}", "{concept}, detailed"]
"""Forget prompts for a concept that none of the known prompts names."""
COMMON_SHARE = 0.5
"""A word found in more than this share of the known prompts does not tell a concept from anything else."""
FUNCTION_WORDS = {"a", "an", "the", "of", "in", "by", "on", "with", "and", "or", "for", "to"}
"""These never do: "the cat" is found in prompts that say "a cat"."""


@dataclass(frozen=True)
class ConceptSpec:
    """What to forget and what to keep.

    Attributes:
        concepts: the texts given by the user.
        forget_prompts: prompts that ask for a concept.
        retain_prompts: prompts that must be drawn as before.
        anchors: for each forget prompt the texts its image may become.
        unnamed: concepts that no forget prompt names by itself, asked for in general wordings instead.
    """

    concepts: list[str]
    forget_prompts: list[str]
    retain_prompts: list[str]
    anchors: list[list[str]]
    unnamed: list[str] = field(default_factory=list)

    def padded_anchors(self) -> list[list[str]]:
        """The anchors with every row as long as the longest, by repetition."""
        most = max(len(row) for row in self.anchors)
        return [[row[i % len(row)] for i in range(most)] for row in self.anchors]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and plural s."""
    found = re.findall(r"\w+", text.casefold())
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found]


def distinctive_words(concept: str, corpus: list[str]) -> set[str]:
    """The words of the concept that set it apart in the corpus; all of them if none does."""
    counts = Counter(w for text in corpus for w in set(words(text)))
    return {w for w in words(concept) if w not in FUNCTION_WORDS and counts[w] <= COMMON_SHARE * len(corpus)} or set(words(concept))


def contains_concept(text: str, concept: str, corpus: list[str]) -> bool:
    """Whether `text` holds every distinctive word of the concept, in any order."""
    return distinctive_words(concept, corpus) <= set(words(text))


def nearest_without(prompt: str, concepts: list[str], candidates: list[str], corpus: list[str]) -> list[str]:
    """The candidates that share the most words with the prompt once the concepts' words are taken out of it."""
    removed = set().union(*(distinctive_words(c, corpus) for c in concepts))
    kept = set(words(prompt)) - removed
    overlap = [len(kept & set(words(candidate))) for candidate in candidates]
    return [candidate for candidate, n in zip(candidates, overlap, strict=True) if n == max(overlap)]


def make_spec(
    concepts: list[str],
    known_prompts: list[str],
    forget_prompts: list[str] | None = None,
    retain_prompts: list[str] | None = None,
    anchor_prompts: list[str] | None = None,
) -> ConceptSpec:
    """Build the spec from the concept alone, or from the lists that are given.

    Args:
        concepts: what to erase, at least one non-empty text.
        known_prompts: prompts the base model draws.
        forget_prompts: used as they are instead of the known prompts that name a concept.
        retain_prompts: used instead of the known prompts that name none.
        anchor_prompts: used for every forget prompt instead of its nearest retain prompts.

    Raises:
        ValueError: a concept is empty, or nothing is left to retain.
    """
    concepts = [" ".join(c.split()) for c in concepts]
    if not concepts or not all(words(c) for c in concepts):
        raise ValueError('The concept is empty; name what to erase, for example --concept "Van Gogh style".')
    corpus = list(dict.fromkeys([*known_prompts, *(retain_prompts or [])]))
    names_concept = {p: any(contains_concept(p, c, corpus) for c in concepts) for p in corpus}
    unnamed: list[str] = []
    if forget_prompts is None:
        forget_prompts = [p for p in known_prompts if names_concept[p]]
        unnamed = [c for c in concepts if not any(contains_concept(p, c, corpus) for p in forget_prompts)]
        forget_prompts += [w.format(concept=c) for c in unnamed for w in WORDINGS]
    if retain_prompts is None:
        retain_prompts = [p for p in known_prompts if not names_concept[p] and p not in forget_prompts]
    if not retain_prompts:
        raise ValueError("No prompt is left to retain; give prompts the model must go on drawing with --retain_prompts FILE.")
    if not forget_prompts:
        raise ValueError("There is no forget prompt; --forget_prompts FILE holds none.")
    if anchor_prompts is not None:
        anchors = [anchor_prompts] * len(forget_prompts)
    else:
        anchors = [nearest_without(p, concepts, retain_prompts, corpus) for p in forget_prompts]
    return ConceptSpec(concepts, forget_prompts, retain_prompts, anchors, unnamed)


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a text file: one a line, `#` starts a comment line, duplicates dropped.

    Raises:
        ValueError: the file cannot be read as text or holds no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The prompt file {path} cannot be read: {error}") from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not prompts:
        raise ValueError(f"The prompt file {path} holds no prompt (one a line, # starts a comment).")
    return prompts
