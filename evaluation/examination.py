"""Examinations: which prompts are drawn, who judges the images, and which figures come out of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from evaluation.judge import Judge, to_pixels
from evaluation.metrics import FIGURES, class_accuracy, unlearning_metrics

if TYPE_CHECKING:
    from reward.spec import ConceptSpec
    from reward.teacher import Teacher

TEACHER_AS_JUDGE = "teacher (the reward's own CLIP; not independent)"

Figures = dict[str, float | None]


class Examination(Protocol):
    """Who judges, and what is drawn for it.

    Attributes:
        name: the judge, as results show it.
        prompts: the prompts to draw, each once a seed.
        forget: for each prompt whether it asks for what is to be forgotten.
    """

    name: str
    prompts: list[str]
    forget: list[bool]

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[Any]:
        """A verdict for each image."""

    def figures(self, verdicts: list[Any], prompt_ids: list[int]) -> Figures:
        """UA, IRA, CRA and their like in percent."""

    def per_class(self, verdicts: list[Any], prompt_ids: list[int]) -> dict[str, dict[str, float]]:
        """Accuracies in percent by domain and class."""

    def showcase(self, count: int) -> list[int]:
        """Up to `count` forget prompts and as many retain prompts for a picture, chosen without looking at any image."""


class JudgeExamination:
    """Every combination of the judge's classes, worded its way; each head judges its own domain.

    Raises:
        ValueError: a concept names none of the judge's classes.
    """

    def __init__(self, judge: Judge, concepts: Sequence[str], name: str) -> None:
        self.judge, self.name = judge, name
        self.targets = target_classes(judge.domains, concepts)
        self.classes = [dict(zip(judge.domains, names, strict=True)) for names in product(*judge.domains.values())]
        self.prompts = [judge.prompt.format(**classes) for classes in self.classes]
        self.forget = [any(classes[domain] in names for domain, names in self.targets.items()) for classes in self.classes]

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        seen = self.judge.predict(to_pixels(images))
        return [{domain: names[seen[domain][i]] for domain, names in self.judge.domains.items()} for i in range(len(images))]

    def figures(self, verdicts: list[dict[str, str]], prompt_ids: list[int]) -> Figures:
        return unlearning_metrics(self._by_domain([self.classes[i] for i in prompt_ids]), self._by_domain(verdicts), self.targets)

    def per_class(self, verdicts: list[dict[str, str]], prompt_ids: list[int]) -> dict[str, dict[str, float]]:
        return class_accuracy(self._by_domain([self.classes[i] for i in prompt_ids]), self._by_domain(verdicts))

    def showcase(self, count: int) -> list[int]:
        """Prompts whose classes have been shown least so far, so that the retained ones show as many classes as can be."""
        forget = [i for i, asks in enumerate(self.forget) if asks]
        retain = [i for i, asks in enumerate(self.forget) if not asks]
        return [*self._varied(forget, count), *self._varied(retain, count)]

    def _varied(self, candidates: list[int], count: int) -> list[int]:
        shown: dict[tuple[str, str], int] = {}
        chosen: list[int] = []
        while candidates and len(chosen) < count:
            best = min(candidates, key=lambda i: sum(shown.get(pair, 0) for pair in self.classes[i].items()))
            candidates = [i for i in candidates if i != best]
            chosen.append(best)
            for pair in self.classes[best].items():
                shown[pair] = shown.get(pair, 0) + 1
        return chosen

    def _by_domain(self, rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
        return {domain: [row[domain] for row in rows] for domain in self.judge.domains}


class TeacherExamination:
    """Zero-shot figures from the reward's own CLIP, for a base that has no judge. They are not independent, and the name says so.

    An image of a forget prompt still shows the concept if it is nearer to its prompt than to every anchor of that prompt (UA is the share
    of those that do not). An image of a retain prompt is right if, of all retain prompts and the concepts, its own prompt is the nearest
    (IRA is the share of those). There is no CRA.
    """

    name = TEACHER_AS_JUDGE

    def __init__(self, teacher: Teacher, spec: ConceptSpec) -> None:
        self.teacher = teacher
        retain = list(dict.fromkeys(spec.retain_prompts))
        self.prompts = [*spec.forget_prompts, *retain]
        self.forget = [True] * len(spec.forget_prompts) + [False] * len(retain)
        # What each prompt's images are compared with, and which row of it is the prompt itself.
        kept = teacher.encode_text([*retain, *spec.concepts])
        rivals = [teacher.encode_text([*anchors, prompt]) for prompt, anchors in zip(spec.forget_prompts, spec.anchors, strict=True)]
        self.choices = rivals + [kept] * len(retain)
        self.own = [len(anchors) for anchors in spec.anchors] + list(range(len(retain)))

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[bool]:
        """For each image, whether it shows what its prompt asks for."""
        embeddings = self.teacher.encode_images(to_pixels(images))
        return [int((self.choices[i] @ e).argmax()) == self.own[i] for e, i in zip(embeddings, prompt_ids, strict=True)]

    def figures(self, verdicts: list[bool], prompt_ids: list[int]) -> Figures:
        there = [v for v, i in zip(verdicts, prompt_ids, strict=True) if self.forget[i]]
        right = [v for v, i in zip(verdicts, prompt_ids, strict=True) if not self.forget[i]]
        return {name: None for name in FIGURES} | {"UA": 100 - 100 * sum(there) / len(there), "IRA": 100 * sum(right) / len(right)}

    def per_class(self, verdicts: list[bool], prompt_ids: list[int]) -> dict[str, dict[str, float]]:
        seen = [self.prompts[i] if v else "" for v, i in zip(verdicts, prompt_ids, strict=True)]
        return class_accuracy({"prompt": [self.prompts[i] for i in prompt_ids]}, {"prompt": seen})

    def showcase(self, count: int) -> list[int]:
        """Evenly spaced over each list."""
        first = sum(self.forget)
        return [*_spaced(range(first), count), *_spaced(range(first, len(self.prompts)), count)]


def target_classes(domains: Mapping[str, Sequence[str]], concepts: Sequence[str]) -> dict[str, set[str]]:
    """The judge's classes that the concepts name, by domain.

    A concept names a class if it holds all words of its name, case and a plural s aside: "Van Gogh style" names the style "Van Gogh",
    "cats" the object "cat". Several concepts name the union.

    Raises:
        ValueError: a concept names no class; the message lists them all.
    """
    targets: dict[str, set[str]] = {}
    for concept in concepts:
        said = _words(concept)
        named = [(domain, name) for domain, names in domains.items() for name in names if _words(name) <= said]
        if not named:
            listed = "; ".join(f"{domain}: {', '.join(names)}" for domain, names in domains.items())
            raise ValueError(f"The judge knows no class that the concept {concept!r} names; it knows {listed}.")
        for domain, name in named:
            targets.setdefault(domain, set()).add(name)
    return targets


def _words(text: str) -> set[str]:
    found = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return {word.removesuffix("s") or word for word in found}


def _spaced(candidates: Sequence[int], count: int) -> list[int]:
    count = min(count, len(candidates))
    return [candidates[i * len(candidates) // count] for i in range(count)]
