"""The metrics of every iteration in `diagnostics.jsonl`, one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from common.files import append_text, write_text
from hub.results import parse_line


class Diagnostics:
    """Appends to the file; `begin` drops what a resumed run will write again.

    A figure that is no finite number becomes null, so that every line is JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, iteration: int) -> None:
        """Keep the lines of the iterations before this one; lines that a kill cut off are dropped."""
        kept = []
        if iteration and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    found = parse_line(line)
                except ValueError:
                    continue
                if found is not None and found["iteration"] < iteration:
                    kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """One line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_text(self.path, json.dumps({"iteration": iteration, **finite}) + "\n")
