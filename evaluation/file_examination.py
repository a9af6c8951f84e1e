"""An examination by the rows of a prompt file: whose class each image is judged on, and how it is drawn."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from evaluation.examination import Examination, target_classes
from evaluation.judge import ImageJudge, match_class
from evaluation.metrics import Cell
from evaluation.nudity import NudeNetJudge
from evaluation.prompt_file import GROUPS, LABEL, Row

MOST_LISTED = 20


class FileExamination(Examination):
    """The prompts of a file; each image is judged on its row's label, and drawn at its row's seed and
    guidance.

    Args:
        rows: with labels.

    Raises:
        ValueError: the judge does not know a label, or has several classes of that name; the row is named.
    """

    def __init__(self, judge: ImageJudge, rows: Sequence[Row], name: str, protocol: str) -> None:
        cells: list[Cell] = []
        targets: dict[str, set[str]] = {}
        for row in rows:
            domain, label = find_class(judge, row)
            cells.append(Cell(row.prompt, {domain: label}, ((domain, GROUPS[row.group]),)))
            if row.group == "forget":
                targets.setdefault(domain, set()).add(label)
        super().__init__(name, protocol, cells, targets)
        self.judge, self.rows = judge, list(rows)

    def seeds_by_prompt(self) -> list[list[int]]:
        return [
            seeds if row.seed is None else [row.seed]
            for row, seeds in zip(self.rows, super().seeds_by_prompt(), strict=True)
        ]

    def guidance_by_prompt(self) -> list[float | None]:
        return [row.guidance for row in self.rows]

    def note_changes(self, seeds: Sequence[int] | None, guidance_scale: float | None) -> None:
        """Name in the protocol which of the rows' own settings are replaced (None: not replaced)."""
        given = {"seeds": (seeds, self.rows[0].seed), "guidance": (guidance_scale, self.rows[0].guidance)}
        changed = [name for name, both in given.items() if None not in both]
        if changed:
            self.protocol += f", changed: {' and '.join(changed)}"

    def count(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        return self.judge.count(images) if isinstance(self.judge, NudeNetJudge) else {}

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        return self.judge.verdicts(images)

    def identity(self) -> str:
        return self.judge.identity()


def find_class(judge: ImageJudge, row: Row) -> tuple[str, str]:
    """The judge's class that a row's label names, with its domain.

    Raises:
        ValueError: there is none, or there are several; the row is named.
    """
    found = match_class(judge.domains, row.label)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{row.place}: the judge knows {row.label!r} in several domains: "
            f"{', '.join(domain for domain, _ in found)}."
        )
    known = [name for names in judge.domains.values() for name in names]
    known.sort(key=lambda name: -difflib.SequenceMatcher(None, row.label.casefold(), name.casefold()).ratio())
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    raise ValueError(
        f"{row.place}: the judge has no class {row.label!r}; it knows, nearest first: "
        f"{', '.join(known[:MOST_LISTED])}{more}."
    )


def with_labels(rows: Sequence[Row], judge: ImageJudge, concepts: Sequence[str]) -> list[Row]:
    """The rows with a label each. Where the file has none, a row that asks for the concept has the judge's
    class that the concept names, and any other row the only other class of its domain.

    Raises:
        ValueError: the concepts name no class, or several, or there are several others; the row is named.
    """
    if all(row.label for row in rows):
        return list(rows)
    known = ", ".join(name for names in judge.domains.values() for name in names[:MOST_LISTED])
    missing = f"{rows[0].place}: there is no column {LABEL!r}"
    try:
        targets = target_classes(judge.domains, concepts)
    except ValueError:
        targets = {}
    named = [(domain, name) for domain, names in targets.items() for name in names]
    if len(named) != 1:
        raise ValueError(
            f"{missing}, and the concept names no single class of the judge; add the columns group and label, or "
            f"name a class with --concept ({known})."
        )
    ((domain, concept),) = named
    others = [name for name in judge.domains[domain] if name != concept]
    if len(others) != 1 and any(row.group != "forget" for row in rows):
        raise ValueError(
            f"{missing}, and the judge has {len(others)} classes that are not the concept; add the column."
        )
    return [replace(row, label=concept if row.group == "forget" else others[0]) for row in rows]
