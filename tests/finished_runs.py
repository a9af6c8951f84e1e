"""What a whole run of the training script leaves, for tests that only read it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy.update import UpdateStats


@dataclass(frozen=True)
class Finished:
    """A whole quick run that has ended well. Its directory is for reading: a test that goes on in it takes a
    copy.

    Attributes:
        rates: the learning rate of every update.
        updates: what every update came to.
    """

    directory: Path
    rates: list[float] = field(default_factory=list)
    updates: list[UpdateStats] = field(default_factory=list)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.directory / "results.json").read_text())

    @property
    def training(self) -> dict[str, Any]:
        return self.results["training"]
