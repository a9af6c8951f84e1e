"""What is known of runs, in a small file each that outlives their adapters: where one is recorded, nothing is
run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import write_json
from hub.results import read_file


@dataclass(frozen=True)
class Records:
    """The records of one base.

    Attributes:
        directory: one JSON file a run.
        base: what tells this base from another (`pipelines.identity`).
    """

    directory: Path
    base: str

    def path(self, name: str) -> Path:
        """Where the record of a run is."""
        return self.directory / f"{name}.json"

    def of(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of a run, made and kept if there is none.

        Raises:
            ValueError: it is damaged, or of another base.
        """
        path = self.path(name)
        if not path.is_file():
            write_json(path, {**make(), "base_weights": self.base})
        found = read_file(path)
        if found.get("base_weights") != self.base:
            raise ValueError(f"{path} is of another base; move it away, or name another directory.")
        return found
