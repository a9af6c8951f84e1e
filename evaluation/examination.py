"""Examinations: which prompts are drawn, who judges their images on what, and which metrics result."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image

from evaluation.judge import ImageJudge, to_pixels
from evaluation.metrics import (
    FORGET,
    IN_DOMAIN,
    METRICS,
    Cell,
    Scores,
    Verdict,
    class_accuracy,
    grid,
    tabulate,
)
from reward.concept.words import says, words

if TYPE_CHECKING:
    from reward.concept import ConceptSpec
    from reward.teacher import Teacher

TEACHER_AS_JUDGE = "teacher (the reward's own CLIP; not independent)"
NUM_NEIGHBOURS = 2
"""Number of classes nearest to each target that are reported separately by default."""
LEAST_SEEDS, LEAST_FORGET_IMAGES = 3, 24

Metrics = dict[str, float | None]
T = TypeVar("T")


class Examination(ABC):
    """A protocol and its judge.

    Attributes:
        name: the judge, as results show it.
        protocol: what is drawn, as results show it.
        cells: the prompts, and what their images are judged on.
        targets: the classes to forget, by domain; empty if the judge has no classes.
        without: additional sets of metrics by name, each over the cells listed.
        seeds: the protocol's; None leaves them open.
        seed_offset: added to every seed, for other images of the same prompts.
        num_inference_steps, guidance_scale: the protocol's; a guidance of None is the pipeline's own.
        image_format: how images are kept between drawing and judging, "png" or "jpeg".
    """

    seeds: Sequence[int] | None = None
    seed_offset: int = 0
    num_inference_steps: int = 30
    guidance_scale: float | None = None
    image_format = "png"

    def __init__(
        self, name: str, protocol: str, cells: Sequence[Cell], targets: Mapping[str, set[str]] | None = None
    ) -> None:
        self.name, self.protocol, self.cells = name, protocol, list(cells)
        self.targets = dict(targets or {})
        self.without: dict[str, list[int]] = {}

    @property
    def prompts(self) -> list[str]:
        return [cell.prompt for cell in self.cells]

    @property
    def forget(self) -> list[bool]:
        """For each prompt, whether it asks for the concept."""
        return [cell.forget for cell in self.cells]

    def seeds_by_prompt(self) -> list[list[int]]:
        """For each prompt, the seeds of its images."""
        if self.seeds is None:
            return default_seeds(self.forget)
        return [list(self.seeds) for _ in self.cells]

    def offset_seeds(self, offset: int) -> None:
        """From now on draw other images; the protocol's name says so."""
        self.seed_offset = offset
        if offset:
            self.protocol += f", changed: {offset} added to the seeds"

    def guidance_by_prompt(self) -> list[float | None]:
        """For each prompt, the guidance scale of its images; None is the pipeline's own."""
        return [self.guidance_scale] * len(self.cells)

    def count(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        """What the judge counts in each of B images beside its verdict, by name: (B,)."""
        return {}

    @abstractmethod
    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> Sequence[Verdict]:
        """A verdict for each image."""

    @abstractmethod
    def identity(self) -> str:
        """A text that distinguishes its verdicts from another judge's."""

    def scores(self, verdicts: Sequence[Verdict], prompt_ids: Sequence[int]) -> dict[str, Scores]:
        """The scores behind each metric."""
        return tabulate(self.cells, verdicts, prompt_ids)

    def metrics(self, verdicts: Sequence[Verdict], prompt_ids: Sequence[int]) -> Metrics:
        """UA, IRA, CRA and related metrics in percent; None where no image counts."""
        scores = self.scores(verdicts, prompt_ids)
        return {name: scores[name].percent() for name in METRICS}

    def per_class(
        self, verdicts: Sequence[Verdict], prompt_ids: Sequence[int]
    ) -> dict[str, dict[str, float]]:
        """Accuracies in percent by domain and class."""
        return class_accuracy(self.cells, verdicts, prompt_ids)

    def showcase(self, count: int) -> list[int]:
        """Up to `count` forget prompts and `count` retain prompts for a picture, evenly spaced, so chosen
        without looking at any image."""
        forget = [i for i, asks in enumerate(self.forget) if asks]
        retain = [i for i, asks in enumerate(self.forget) if not asks]
        return [*spaced(forget, count), *spaced(retain, count)]


class JudgeExamination(Examination):
    """Every combination of the judge's classes, in its wording; each head judges its own domain.

    Args:
        concepts: what was to be erased; each names classes of the judge.
        name: the judge's.
        neighbours: classes to report separately.
        encode_text: texts -> unit vectors, to find neighbours where none are named: the classes of the
            target's domain nearest to it.

    Raises:
        ValueError: a concept or a neighbour names none of the judge's classes.
    """

    protocol_name: ClassVar[str] = "every combination of the judge's classes"

    def __init__(
        self,
        judge: ImageJudge,
        concepts: Sequence[str],
        name: str,
        neighbours: Sequence[str] = (),
        encode_text: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> None:
        targets = target_classes(judge.domains, concepts)
        apart = target_classes(judge.domains, neighbours)
        if encode_text and not neighbours:
            apart = nearest_classes(judge.domains, judge.prompt, targets, encode_text)
        super().__init__(name, self.protocol_name, grid(judge.domains, judge.prompt, targets, apart), targets)
        self.judge, self.neighbours = judge, apart

    @property
    def classes(self) -> list[Mapping[str, str]]:
        """For each prompt, the classes it names, by domain."""
        return [cell.labels for cell in self.cells]

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        return self.judge.verdicts(images)

    def identity(self) -> str:
        return self.judge.identity()

    def showcase(self, count: int) -> list[int]:
        """Prompts whose classes have been shown least so far, so that the retained ones show as many classes
        as possible."""
        forget = [i for i, asks in enumerate(self.forget) if asks]
        retain = [i for i, asks in enumerate(self.forget) if not asks]
        return [*self._varied(forget, count), *self._varied(retain, count)]

    def _varied(self, candidates: list[int], count: int) -> list[int]:
        shown: dict[tuple[str, str], int] = {}
        chosen: list[int] = []
        while candidates and len(chosen) < count:
            best = min(
                candidates, key=lambda i: sum(shown.get(pair, 0) for pair in self.cells[i].labels.items())
            )
            candidates = [i for i in candidates if i != best]
            chosen.append(best)
            for pair in self.cells[best].labels.items():
                shown[pair] = shown.get(pair, 0) + 1
        return chosen


class TeacherExamination(Examination):
    """Zero-shot metrics from the reward's own CLIP, for a base that has no judge. They are not independent,
    and the name says so.

    An image of a forget prompt still shows the concept if it is nearer to its prompt than to every anchor of
    that prompt; UA is the fraction of images that do not. An image of a retain prompt is right if its own
    prompt is the nearest of all retain prompts and concepts; IRA is the fraction of those. There is no CRA.
    """

    def __init__(self, teacher: Teacher, spec: ConceptSpec) -> None:
        retain = list(dict.fromkeys(spec.retain_prompts))
        roles = [FORGET] * len(spec.forget_prompts) + [IN_DOMAIN] * len(retain)
        cells = [
            Cell(p, {"prompt": p}, (("prompt", role),))
            for p, role in zip([*spec.forget_prompts, *retain], roles, strict=True)
        ]
        super().__init__(TEACHER_AS_JUDGE, "the spec's prompts", cells)
        self.teacher = teacher
        # The texts that each prompt's images are compared with, and the row of the prompt itself.
        kept = teacher.encode_text([*retain, *spec.concepts])
        rivals = [
            teacher.encode_text([*anchors, prompt])
            for prompt, anchors in zip(spec.forget_prompts, spec.anchors, strict=True)
        ]
        self.choices = rivals + [kept] * len(retain)
        self.own = [len(anchors) for anchors in spec.anchors] + list(range(len(retain)))

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        """For each image, its own prompt if it shows what that asks for, else an empty text."""
        embeddings = self.teacher.encode_images(to_pixels(images))
        right = [
            int((self.choices[i] @ e).argmax()) == self.own[i]
            for e, i in zip(embeddings, prompt_ids, strict=True)
        ]
        return [
            {"prompt": self.cells[i].prompt if shows else ""}
            for i, shows in zip(prompt_ids, right, strict=True)
        ]

    def identity(self) -> str:
        embeddings = b"".join(choices.float().cpu().numpy().tobytes() for choices in self.choices)
        return f"{hashlib.sha256(embeddings).hexdigest()} {self.own}"


def default_seeds(forget: Sequence[bool]) -> list[list[int]]:
    """For each prompt, the seeds of its images by default.

    Every prompt has LEAST_SEEDS. If that makes fewer than LEAST_FORGET_IMAGES images that ask for the
    concept, the forget prompts have enough to reach these. A single forget prompt has 24, and a fraction of
    24 images is known to about 20 percentage points at worst.

    Args:
        forget: for each prompt, whether it asks for the concept.
    """
    more = max(LEAST_SEEDS, -(-LEAST_FORGET_IMAGES // max(1, sum(forget))))
    return [list(range(more if asks else LEAST_SEEDS)) for asks in forget]


def target_classes(domains: Mapping[str, Sequence[str]], concepts: Sequence[str]) -> dict[str, set[str]]:
    """The judge's classes that the concepts name, by domain.

    A concept names a class if it contains all words of its name, ignoring case and a plural s: "Van Gogh
    style" names the style "Van Gogh", "cats" the object "cat". Of two such classes of a domain the more
    specific one counts: "Artist Sketch" is not "Sketch". Several concepts name the union.

    Raises:
        ValueError: a concept names no class; the message lists them all.
    """
    targets: dict[str, set[str]] = {}
    for concept in concepts:
        named = [
            (domain, name)
            for domain, names in domains.items()
            for name in names
            if (wanted := set(words(name))) and says(concept, wanted)
        ]
        if not named:
            listed = "; ".join(f"{domain}: {', '.join(names)}" for domain, names in domains.items())
            raise ValueError(f"The judge has no class that the concept {concept!r} names; it knows {listed}.")
        for domain, name in named:
            if not any(of == domain and set(words(name)) < set(words(other)) for of, other in named):
                targets.setdefault(domain, set()).add(name)
    return targets


def nearest_classes(
    domains: Mapping[str, Sequence[str]],
    wording: str,
    targets: Mapping[str, set[str]],
    encode_text: Callable[[list[str]], torch.Tensor],
    *,
    count: int = NUM_NEIGHBOURS,
) -> dict[str, set[str]]:
    """For each target, the `count` other classes of its domain whose prompts are nearest to its own in a text
    space, by domain."""
    cells = grid(domains, wording, targets)
    embeddings = encode_text([cell.prompt for cell in cells])

    def embedding(domain: str, name: str) -> torch.Tensor:
        mean = embeddings[[i for i, cell in enumerate(cells) if cell.labels[domain] == name]].mean(0)
        return mean / mean.norm()

    found: dict[str, set[str]] = {domain: set() for domain in targets}
    for domain, names in targets.items():
        others = [name for name in domains[domain] if name not in names]
        for target in names:
            cosines = {name: float(embedding(domain, name) @ embedding(domain, target)) for name in others}
            found[domain].update(sorted(cosines, key=cosines.__getitem__, reverse=True)[:count])
    return found


def spaced(candidates: Sequence[T], count: int) -> list[T]:
    """Up to `count` of them, evenly spaced."""
    count = min(count, len(candidates))
    return [candidates[i * len(candidates) // count] for i in range(count)]
