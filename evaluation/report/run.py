"""The files of a run's directory; any of them may be missing."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.results import (
    DIAGNOSTICS_NAME,
    PROBES_NAME,
    RESULTS_NAME,
    read_diagnostics,
    read_probes,
    read_results,
)

PNG = b"\x89PNG\r\n\x1a\n"
PER_TIMESTEP = re.compile(r"(.+)/t(\d{1,9})")


@dataclass(frozen=True)
class Shown:
    """A prompt drawn twice from the same noise; the images are PNG files."""

    prompt: str
    seed: int
    forget: bool
    before: Path
    after: Path


@dataclass
class Run:
    """A run, read from its files.

    Attributes:
        results: results.json.
        diagnostics: the metrics of each iteration, in order.
        probes: the results of `python -m evaluation.probes`.
        samples: the pictures of each probe, by its name.
        shown: images of the evaluation, base and adapter.
    """

    directory: Path
    results: dict[str, Any]
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Path]] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Path) -> Run:
        """Read whatever is there.

        Raises:
            ValueError: there is neither results.json nor diagnostics.jsonl nor probes.json, or one is
                malformed.
        """
        results, diagnostics = read_results(directory), read_diagnostics(directory)
        place = next(
            (at for at in (directory, directory / "probes") if (at / PROBES_NAME).is_file()),
            directory / "probes",
        )
        probes = read_probes(place) or results.get("probes") or {}
        if not (results or diagnostics or probes):
            raise ValueError(
                f"{directory} holds no run: there is neither {RESULTS_NAME} nor {DIAGNOSTICS_NAME} nor {PROBES_NAME}."
            )
        samples = {
            name: _numbered(place, name, len(probe["rows"]))
            for name, probe in (probes.get("probes") or {}).items()
        }
        return cls(directory, results, diagnostics, probes, samples, _shown(directory, results))

    def picture(self, name: str) -> Path | None:
        """A file of the directory, if it is a PNG."""
        path = self.directory / name
        return path if is_png(path) else None

    def per_timestep(self) -> dict[str, list[dict[int, float]]]:
        """Metrics of single timesteps: by name, for each iteration, by timestep."""
        found: dict[str, list[dict[int, float]]] = {}
        for number, line in enumerate(self.diagnostics):
            for key, value in line.items():
                match = PER_TIMESTEP.fullmatch(key)
                if match and value is not None:
                    rows = found.setdefault(match[1], [{} for _ in self.diagnostics])
                    rows[number][int(match[2])] = float(value)
        return found


def is_png(path: Path) -> bool:
    """Whether a file starts with PNG's signature."""
    try:
        with path.open("rb") as file:
            return file.read(len(PNG)) == PNG
    except OSError:
        return False


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _numbered(place: Path, name: str, count: int) -> list[Path]:
    return [path for number in range(1, count + 1) if is_png(path := place / f"probe-{name}-{number}.png")]


def _shown(directory: Path, results: dict[str, Any]) -> list[Shown]:
    images, scale = directory / "images", results.get("lora_scale")
    found = []
    for one in results.get("shown") or []:
        file = f"{one['index']:05d}-seed{one['seed']}.png"
        before, after = images / "base" / file, images / f"weight-{1 if scale is None else scale:g}" / file
        if is_png(before) and is_png(after):
            found.append(Shown(one["prompt"], one["seed"], one["forget"], before, after))
    return found
