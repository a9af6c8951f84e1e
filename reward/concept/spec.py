"""What to forget and what to keep: the plain data that a concept is turned into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.texts import folded, is_text
from reward.concept.words import contains_concept, words


class SpecError(ValueError):
    """A spec that is empty, contradicts itself or cannot be read; the message says what to change."""


@dataclass(frozen=True)
class ConceptSpec:
    """What to forget and what to keep.

    Attributes:
        concepts: what to erase, in the user's words.
        forget_prompts: prompts that ask for a concept.
        retain_prompts: prompts that must be drawn as before.
        anchors: for each forget prompt the texts its image may become.
        kinds: for each concept "style", "object", "identity" or "unsafe".
        unnamed: concepts that no known prompt names, asked for in the wordings of their kind.
        confusable: for a concept, or all of them together, the texts so near to it that they are neither
            erased nor retained, nearest first.
    """

    concepts: list[str]
    forget_prompts: list[str]
    retain_prompts: list[str]
    anchors: list[list[str]]
    kinds: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    confusable: dict[str, list[str]] = field(default_factory=dict)

    def padded_anchors(self) -> list[list[str]]:
        """The anchors with every row as long as the longest, by repetition."""
        most = max(len(row) for row in self.anchors)
        return [[row[i % len(row)] for i in range(most)] for row in self.anchors]


def clean_concepts(concepts: Sequence[str]) -> list[str]:
    """The concepts with single spaces.

    Raises:
        SpecError: there is none, or one holds no word.
    """
    cleaned = [" ".join(c.split()) for c in concepts]
    check_texts(cleaned)
    if not cleaned or not all(words(c) for c in cleaned):
        raise SpecError('The concept is empty; name what to erase, for example --concept "Van Gogh style".')
    return cleaned


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what no tokenizer accepts.

    Raises:
        SpecError: a text holds half a character.
    """
    broken = next((text for text in texts if not is_text(text)), None)
    if broken is not None:
        raise SpecError(f"{broken!a} holds half a character; write it in UTF-8.")


def check_spec(spec: ConceptSpec) -> ConceptSpec:
    """The spec itself, if it can be trained on.

    Raises:
        SpecError: a part is empty, or a prompt is to be kept, or offered as an anchor, that asks for what is
            to be forgotten.
    """
    check_texts([*spec.forget_prompts, *spec.retain_prompts, *(text for row in spec.anchors for text in row)])
    if not spec.forget_prompts:
        raise SpecError(
            "There is no forget prompt: --forget_prompts FILE, or `forget` of the spec, holds none."
        )
    if not spec.retain_prompts:
        raise SpecError(
            "No prompt is left to retain; give prompts the model must go on drawing with --retain_prompts FILE."
        )
    corpus, forgotten = spec.forget_prompts + spec.retain_prompts, set(map(folded, spec.forget_prompts))
    for role, prompts in (
        ("retain prompt", spec.retain_prompts),
        ("anchor", [text for row in spec.anchors for text in row]),
    ):
        for prompt in dict.fromkeys(prompts):
            asks_for = (
                prompt
                if folded(prompt) in forgotten
                else next((c for c in spec.concepts if contains_concept(prompt, c, corpus)), None)
            )
            if asks_for is not None:
                raise SpecError(
                    f'The {role} "{prompt}" asks for what is to be forgotten ("{asks_for}"); take it out or reword it.'
                )
    return spec
