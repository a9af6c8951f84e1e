"""What a probe reports: rows, each with how often the judge sees the concept, the cost, and a few images."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from common.files import write_bytes
from evaluation.intervals import Interval, proportion_interval
from pipelines.meter import counted

CELL, GAP, SAMPLES = 96, 4, 8
"""Side of a sample and the gap between two in pixels, and how many of a row's images are kept."""


@dataclass(frozen=True)
class Return:
    """How often the judge sees the concept, in percent.

    Attributes:
        interval: of 95 %, over prompts and their images.
        images: number judged.
    """

    percent: float
    interval: Interval
    images: int

    @classmethod
    def of(cls, seen: Sequence[Sequence[float]]) -> Return:
        """From the images of each prompt: 1 where the concept was seen, 0 where it was not.

        Raises:
            ValueError: there is no image.
        """
        if not any(seen):
            raise ValueError("no images were judged")
        means = [sum(row) / len(row) for row in seen]
        return cls(100 * sum(means) / len(means), proportion_interval(seen), sum(map(len, seen)))

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "return": round(self.percent, 2),
            "ci95": [round(low, 2), round(high, 2)],
            "images": self.images,
        }


@dataclass
class Budget:
    """What an attacker spends before the first image.

    Attributes:
        images: number of images learnt from, of the concept or of anything else.
        steps: optimizer steps.
        unet_samples: UNet evaluations, one for each image, timestep and branch of the guidance.
        seconds: on the machine that measured.
    """

    images: int = 0
    steps: int = 0
    unet_samples: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "steps": self.steps,
            "unet_samples": self.unet_samples,
            "seconds": round(self.seconds, 1),
        }


@dataclass
class Row:
    """One attempt at the concept.

    Attributes:
        name: what was attempted.
        adapter: what came back with the adapter.
        base: what the same attempt finds in the base, the most that can come back; None if it was not tried.
        budget: of the attempt on the adapter; the one on the base has the same.
        prompts: some of those that were drawn.
        before, after: the first images drawn by the base and with the adapter.
        facts: further numbers by name.
    """

    name: str
    adapter: Return
    base: Return | None
    budget: Budget = field(default_factory=Budget)
    prompts: Sequence[str] = ()
    before: Sequence[Image.Image] = ()
    after: Sequence[Image.Image] = ()
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "adapter": self.adapter.as_json(),
            "base": self.base.as_json() if self.base else None,
            "budget": self.budget.as_json(),
            "prompts": list(self.prompts),
            "facts": {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in self.facts.items()
            },
        }


@contextmanager
def metered(denoiser: nn.Module, budget: Budget) -> Iterator[None]:
    """Add the UNet evaluations and the seconds of a block to the budget."""
    started = time.perf_counter()
    with counted(denoiser) as count:
        try:
            yield
        finally:
            budget.unet_samples += count.samples
            budget.seconds += time.perf_counter() - started


def save_samples(row: Row, path: Path) -> None:
    """Write the row's images as PNG: the base's above, the adapter's below, from the same noise; the
    adapter's alone if the base was not tried."""
    bands = [band[:SAMPLES] for band in (row.before, row.after) if band]
    width = max(map(len, bands)) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, len(bands) * (CELL + GAP) + GAP), "white")
    for y, band in enumerate(bands):
        for x, image in enumerate(band):
            filtering = Image.Resampling.NEAREST if max(image.size) < CELL else Image.Resampling.LANCZOS
            sheet.paste(
                image.convert("RGB").resize((CELL, CELL), filtering),
                (GAP + x * (CELL + GAP), GAP + y * (CELL + GAP)),
            )
    sheet.save(picture := io.BytesIO(), "PNG")
    write_bytes(path, picture.getvalue())


def cell(found: Mapping[str, Any] | None) -> str:
    """What an attempt found, with its interval."""
    if found is None:
        return "-"
    low, high = found["ci95"]
    return f"{found['return']:.1f} [{low:.1f}, {high:.1f}]"
