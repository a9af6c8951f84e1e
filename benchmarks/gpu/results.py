"""The file of results: one JSON object a line, written the moment it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import append_text
from common.versions import versions

NAME = "results.jsonl"
Line = dict[str, Any]
"""`stage`, `label` and `settings` say what was tried. Beside them stand either `figures`, with `versions`,
`card` and `wall_seconds`, or `failed`, which says why there are none."""


@dataclass(frozen=True)
class Results:
    """Measurements of all calls.

    Attributes:
        path: of the file, which need not be there yet.
        label: of what is measured now; what was measured under another counts as something else.
    """

    path: Path
    label: str = ""

    def lines(self) -> list[Line]:
        """In the order in which they were written, whatever their label."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def has(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether this was measured; what failed was not."""
        wanted = {"stage": stage, "label": self.label, "settings": json.loads(json.dumps(settings))}
        return any("figures" in line and wanted.items() <= line.items() for line in self.lines())

    def add(self, stage: str, settings: Mapping[str, Any], figures: Mapping[str, Any], **known: Any) -> None:
        """Append what was measured.

        Args:
            known: what else the line says: the card, the seconds that the measurement took.
        """
        self._append(stage, settings, {"figures": dict(figures), **known, "versions": versions()})

    def add_failure(self, stage: str, settings: Mapping[str, Any], why: str) -> None:
        """Append why something was not measured, in one line of text."""
        self._append(stage, settings, {"failed": " ".join(why.split())})

    def _append(self, stage: str, settings: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
        line = {"stage": stage, "label": self.label, "settings": dict(settings), **rest}
        append_text(self.path, json.dumps(line, ensure_ascii=False) + "\n")
