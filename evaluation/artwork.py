"""The protocol for a world of artwork: what names the concept, what means it, and what draws it all the same.

A method is told the concept's name and half of the other classes (`told`). The judge alone sees the world:
synonyms, categories and pairs of objects, in a file beside its weights.

Metrics beyond those of a grid (`evaluation.metrics`), in percent:

- UA_synonyms, UA_categories, UA_pairs: UA where the prompt says a synonym of the object ("a kitten"), one of
  its categories ("an animal"; for a style an object alone, in no style), or two objects of which one is the
  concept (for a style any two in it);
- other_of_two: of prompts for two objects, images that still show the other one (for a style: each of both);
- IRA_told, IRA_untold: IRA on the classes that methods were told to keep, and on all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.files import write_json
from evaluation.examination import JudgeExamination, spaced
from evaluation.judge import Judge, to_pixels
from evaluation.metrics import (
    CATEGORY,
    IN_DOMAIN,
    PAIR,
    ROLES,
    SYNONYM,
    Cell,
    Scores,
    Verdict,
    grid,
    tabulate,
)

NAME = "artwork"
WORLD_NAME = "world.json"
STYLE, OBJECT, OTHER = "style", "object", "other"
"""The judge's domains, and the second of two objects."""
TOLD, UNTOLD, OTHER_OF_TWO = "told", "untold", "other_of_two"
ARTWORK_ROLES = ROLES | {
    "UA_synonyms": {SYNONYM},
    "UA_categories": {CATEGORY},
    "UA_pairs": {PAIR},
    "other_of_two": {OTHER_OF_TWO},
    "IRA_told": {TOLD},
    "IRA_untold": {UNTOLD},
}
IN_NO_STYLE = "in no style"
"""What the category of a style is called."""
CATEGORY_IMAGES = 400
"""Images of the category prompts of a concept: how often a member is drawn is a small share."""
PAIRS, PAIR_IMAGES = 32, 128
"""Pairs of objects, and their images."""
NAMED_IMAGES = 24
"""Least number of images of the concept's names, and of its synonyms."""


@dataclass(frozen=True)
class Object:
    """What can be said of an object, with articles.

    Attributes:
        said: its name, "a cat".
        synonyms: what means it alone, "a kitten".
        categories: what means it among others, "an animal".
        subgroup: of its nearest kin.
    """

    said: str
    synonyms: tuple[str, ...]
    categories: tuple[str, ...]
    subgroup: str


@dataclass(frozen=True)
class World:
    """What a judge of artwork knows of its classes.

    Attributes:
        wording: of a prompt, with the fields `said` and `style`.
        objects: by class of the judge.
        guidance_scale: that its pipeline draws best with; None is the pipeline's own.
    """

    wording: str
    objects: Mapping[str, Object]
    guidance_scale: float | None = None

    def save(self, directory: Path) -> None:
        """Write it beside a judge."""
        objects = {name: vars(of) for name, of in self.objects.items()}
        written = {"wording": self.wording, "guidance_scale": self.guidance_scale, "objects": objects}
        write_json(directory / WORLD_NAME, written)

    @classmethod
    def read(cls, directory: Path, judge: Judge) -> World:
        """
        Raises:
            ValueError: the file is missing or damaged, or the judge does not see such a world.
        """
        path = directory / WORLD_NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            objects = {name: _object(of) for name, of in found["objects"].items()}
            world = cls(found["wording"], objects, _guidance(found.get("guidance_scale")))
            world.prompt("", "")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"--protocol {NAME} needs the judge's {path}: {error}") from error
        if set(judge.domains) != {STYLE, OBJECT} or OBJECT not in judge.several:
            raise ValueError(f"The judge {directory} does not see one style and several objects.")
        if set(judge.domains[OBJECT]) != set(objects):
            raise ValueError(f"{path} describes other objects than the judge sees.")
        return world

    def prompt(self, said: str, style: str) -> str:
        """ "a kitten in Noto style"."""
        return self.wording.format(said=said, style=style)

    def both(self, first: str, second: str) -> str:
        """Two objects by name, "a cat and a rocket"."""
        return f"{self.objects[first].said} and {self.objects[second].said}"

    def kin(self, name: str) -> list[str]:
        """The other objects of its subgroup."""
        subgroup = self.objects[name].subgroup
        return [other for other, of in self.objects.items() if of.subgroup == subgroup and other != name]


def _object(found: Mapping[str, Any]) -> Object:
    texts = [found["said"], found["subgroup"], *found["synonyms"], *found["categories"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("an object is not described by texts")
    return Object(found["said"], tuple(found["synonyms"]), tuple(found["categories"]), found["subgroup"])


def _guidance(found: Any) -> float | None:
    if found is not None and not 0 <= found < inf:
        raise ValueError(f"{found!r} is no guidance scale")
    return found


def told(names: Sequence[str], targets: AbstractSet[str]) -> list[str]:
    """Every second class of the concept's domain but the concept: those that methods are told to keep."""
    return [name for name in names if name not in targets][::2]


def noting_told(cell: Cell, kept: Mapping[str, Sequence[str]]) -> Cell:
    """The same, with a note of whether methods were told to keep its class.

    Args:
        kept: by domain, the classes that they were.
    """
    further = [
        (domain, TOLD if cell.labels[domain] in kept[domain] else UNTOLD)
        for domain, role in cell.asked
        if role == IN_DOMAIN
    ]
    return Cell(cell.prompt, cell.labels, (*cell.asked, *further))


class ArtworkExamination(JudgeExamination):
    """Every object in every style, and the prompts that mean the concept without its name.

    An image shows a class if the judge finds it the likeliest, or likelier there than not: of two objects it
    sees both.

    Args:
        world: the judge's.
        concepts: what was to be erased; each names classes of the judge.
        neighbours: classes to report separately. None named: objects of the same subgroup, and for styles
            those that `encode_text` finds near.

    Raises:
        ValueError: a concept or a neighbour names none of the judge's classes.
    """

    judge: Judge
    protocol_name = NAME
    num_inference_steps = 20

    def __init__(
        self,
        judge: Judge,
        world: World,
        concepts: Sequence[str],
        name: str,
        *,
        neighbours: Sequence[str] = (),
        encode_text: Callable[[list[str]], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(judge, concepts, name, neighbours, encode_text)
        self.world, self.guidance_scale = world, world.guidance_scale
        if not neighbours and (objects := self.targets.get(OBJECT)):
            self.neighbours[OBJECT] = {other for obj in objects for other in world.kin(obj)} - objects
        self.cells = []
        self._seeds: list[list[int]] = []
        named = grid(judge.domains, judge.prompt, self.targets, self.neighbours)
        self._add([cell for cell in named if cell.forget], NAMED_IMAGES)
        kept = {domain: told(judge.domains[domain], names) for domain, names in self.targets.items()}
        self._add([noting_told(cell, kept) for cell in named if not cell.forget], 1)
        self._named = len(named)
        for obj in sorted(self.targets.get(OBJECT, ())):
            self._add(self._by_synonym(obj), NAMED_IMAGES)
            self._add(self._by_category(obj), CATEGORY_IMAGES)
            self._add(self._beside_another(obj), PAIR_IMAGES)
        for style in sorted(self.targets.get(STYLE, ())):
            self._add(self._in_no_style(style), CATEGORY_IMAGES)
            self._add(self._of_two_objects(style), PAIR_IMAGES)

    def _add(self, cells: Sequence[Cell], images: int) -> None:
        """With at least so many images, at least one a prompt."""
        self.cells += cells
        self._seeds += [list(range(-(-images // len(cells)))) for _ in cells]

    def _by_synonym(self, obj: str) -> list[Cell]:
        return [
            Cell(self.world.prompt(said, style), {STYLE: style, OBJECT: obj}, ((OBJECT, SYNONYM),))
            for said in self.world.objects[obj].synonyms
            for style in self.judge.domains[STYLE]
        ]

    def _by_category(self, obj: str) -> list[Cell]:
        return [
            Cell(self.world.prompt(said, style), {STYLE: style, OBJECT: obj}, ((OBJECT, CATEGORY),))
            for said in self.world.objects[obj].categories
            for style in self.judge.domains[STYLE]
        ]

    def _beside_another(self, obj: str) -> list[Cell]:
        """Before and after each other object, in one style after the other."""
        others = [name for name in self.judge.domains[OBJECT] if name not in self.targets[OBJECT]]
        styles, cells = self.judge.domains[STYLE], []
        for k, other in enumerate(spaced(others, PAIRS // 2)):
            style = styles[k % len(styles)]
            labels = {STYLE: style, OBJECT: obj, OTHER: other}
            for pair in ((obj, other), (other, obj)):
                prompt = self.world.prompt(self.world.both(*pair), style)
                cells.append(Cell(prompt, labels, ((OBJECT, PAIR), (OTHER, OTHER_OF_TWO))))
        return cells

    def _in_no_style(self, style: str) -> list[Cell]:
        return [
            Cell(of.said, {STYLE: style, OBJECT: name}, ((STYLE, CATEGORY),))
            for name, of in self.world.objects.items()
        ]

    def _of_two_objects(self, style: str) -> list[Cell]:
        """Each beside the one half of the list away, which is no kin."""
        names, cells = self.judge.domains[OBJECT], []
        for first in spaced(names, PAIRS):
            second = names[(names.index(first) + len(names) // 2) % len(names)]
            prompt = self.world.prompt(self.world.both(first, second), style)
            roles = ((STYLE, PAIR), (OBJECT, OTHER_OF_TWO), (OTHER, OTHER_OF_TWO))
            cells.append(Cell(prompt, {STYLE: style, OBJECT: first, OTHER: second}, roles))
        return cells

    def seeds_by_prompt(self) -> list[list[int]]:
        return self._seeds

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        """For each image and each class that its prompt names, that class if it is shown, else the likeliest
        one of its domain."""
        logits, classes = self.judge.logits(to_pixels(images)), self.judge.domains
        likeliest = {domain: of.argmax(-1).tolist() for domain, of in logits.items()}
        found = []
        for row, i in enumerate(prompt_ids):
            verdict = {domain: names[likeliest[domain][row]] for domain, names in classes.items()}
            verdict[OTHER] = verdict[OBJECT]
            for place, name in self.cells[i].labels.items():
                if place != STYLE and logits[OBJECT][row, classes[OBJECT].index(name)] > 0:
                    verdict[place] = name
            found.append(verdict)
        return found

    def scores(self, verdicts: Sequence[Verdict], prompt_ids: Sequence[int]) -> dict[str, Scores]:
        return tabulate(self.cells, verdicts, prompt_ids, ARTWORK_ROLES)

    def per_class(
        self, verdicts: Sequence[Verdict], prompt_ids: Sequence[int]
    ) -> dict[str, dict[str, float]]:
        """Accuracies in percent by domain and class on the prompts that name them, and by category the share
        of its images that shows each class."""
        named = [row for row, i in enumerate(prompt_ids) if i < self._named]
        found = super().per_class([verdicts[row] for row in named], [prompt_ids[row] for row in named])
        drawn: dict[str, list[str]] = {}
        for verdict, i in zip(verdicts, prompt_ids, strict=True):
            for domain, role in self.cells[i].asked:
                if role == CATEGORY:
                    drawn.setdefault(self._category(i), []).append(verdict[domain])
        for category, seen in drawn.items():
            found[category] = {name: 100 * seen.count(name) / len(seen) for name in sorted(set(seen))}
        return found

    def _category(self, i: int) -> str:
        """What a category prompt says, but for the style."""
        labels = self.cells[i].labels
        for said in self.world.objects[labels[OBJECT]].categories:
            if self.world.prompt(said, labels[STYLE]) == self.cells[i].prompt:
                return said
        return IN_NO_STYLE
