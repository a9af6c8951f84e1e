"""What is probed: an adapter on its base, the prompts that ask for the concept, and the judge that looks for
it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    SchedulerMixin,
)
from PIL import Image
from tqdm.auto import tqdm

from evaluation.examination import Examination
from evaluation.judge import to_pixels
from evaluation.metrics import FORGET
from evaluation.probes.rows import SAMPLES, Budget, Return, Row
from evaluation.protocol import default_guidance
from pipelines.backbone import Backbone
from pipelines.generate import adapter_disabled, batch_of, draw, evaluation_mode

ATTACKER_SEEDS = 10_000
"""Seeds of images to learn from start here, so that none of them is judged."""

Variant = tuple[int, str]
"""Index of a prompt of the examination that asks for the concept, and the prompt drawn in its place."""


@dataclass(frozen=True)
class Pictures:
    """N images of the concept, or of anything else, none of which is judged.

    Attributes:
        images: of the base's size.
        cells: for each the index of its prompt in the examination.
    """

    images: list[Image.Image]
    cells: list[int]


@dataclass(frozen=True)
class Examples:
    """N images to learn from.

    Attributes:
        latents: (N, C, h, w), as the UNet knows them.
        cells: for each the index of its prompt in the examination.
    """

    latents: torch.Tensor
    cells: list[int]

    def __len__(self) -> int:
        return len(self.cells)


@dataclass
class Subject:
    """An adapter on its base, and how it is examined.

    Attributes:
        pipe: the base with the adapter, and no other, loaded at weight 1.
        adapter: its name in the pipeline.
        concepts: what it was to erase.
        guidance_scale: None is the pipeline's own.
        images: files or a folder's images of the concept to learn from; None lets the base draw them.
        adapter_dir: the directory of the adapter.
        merge_with: a directory with another adapter for the same base.
        sides: of every attempt: with the adapter (False), and the same on the base (True), which is optional.
    """

    pipe: DiffusionPipeline
    adapter: str
    concepts: list[str]
    examination: Examination
    num_inference_steps: int = 30
    guidance_scale: float | None = None
    eval_batch_size: int = 64
    images: list[Image.Image] | None = None
    adapter_dir: Path | None = None
    merge_with: Path | None = None
    sides: tuple[bool, ...] = (False, True)
    progress: bool = True
    _drawn: dict[tuple[bool, int], Examples] = field(default_factory=dict, repr=False)
    _pictures: dict[tuple[bool, int], Pictures] = field(default_factory=dict, repr=False)

    @property
    def backbone(self) -> Backbone:
        return Backbone.of(self.pipe)

    @property
    def guidance(self) -> float | None:
        """The scale of guidance, the text-to-image pipeline's own where none is given: other pipelines that
        are made of its parts have other defaults."""
        return default_guidance(self.pipe) if self.guidance_scale is None else self.guidance_scale

    @property
    def forget(self) -> list[int]:
        """Indices of the examination's prompts that ask for the concept."""
        return [i for i, asks in enumerate(self.examination.forget) if asks]

    @property
    def retain(self) -> list[int]:
        """Indices of the others."""
        return [i for i, asks in enumerate(self.examination.forget) if not asks]

    @property
    def plain(self) -> list[Variant]:
        """The prompts that ask for the concept, as they are."""
        return [(i, self.prompt(i)) for i in self.forget]

    def prompt(self, cell: int) -> str:
        return self.examination.cells[cell].prompt

    @contextmanager
    def side(self, base: bool) -> Iterator[None]:
        """Within: the base, bit for bit, or the adapter."""
        with adapter_disabled(self.pipe) if base else nullcontext():
            yield

    def jobs(self, variants: Sequence[Variant], least: int) -> list[tuple[int, int]]:
        """Variant and seed of each image, seed after seed: at least `least` images, and the same number for
        each variant."""
        return [(row, seed) for seed in range(-(-least // len(variants))) for row in range(len(variants))]

    def draw(
        self,
        prompts: Sequence[tuple[str, int]],
        label: str,
        pipe: DiffusionPipeline | None = None,
        *,
        sampler: Callable[[DiffusionPipeline], SchedulerMixin] | None = None,
        **given: Any,
    ) -> list[Image.Image]:
        """An image for each prompt and seed, by the pipeline as it is now (or by another).

        Args:
            sampler: makes the one to draw with; by default it is deterministic.
            given: what else the pipeline is called with; a list has an item for each image.
        """
        pipe = pipe or self.pipe
        images: list[Image.Image] = []
        with (
            evaluation_mode(pipe, sampler),
            tqdm(total=len(prompts), desc=label, disable=not self.progress, unit="image", leave=False) as bar,
        ):
            for start in range(0, len(prompts), self.eval_batch_size):
                rows = slice(start, start + self.eval_batch_size)
                batch = prompts[rows]
                images += draw(
                    pipe,
                    batch,
                    self.num_inference_steps,
                    self.guidance,
                    self.eval_batch_size,
                    **batch_of(given, rows),
                )
                bar.update(len(batch))
        return images

    def look(
        self,
        variants: Sequence[Variant],
        least: int,
        label: str,
        pipe: DiffusionPipeline | None = None,
        **given: Any,
    ) -> tuple[Return, list[Image.Image]]:
        """Draw the variants with the pipeline as it is now, and let the judge look for the concept: how often
        it is there, and the first images. `given` as for `draw`."""
        jobs = self.jobs(variants, least)
        images = self.draw([(variants[row][1], seed) for row, seed in jobs], label, pipe, **given)
        return self.judge(variants, least, images), images[:SAMPLES]

    def judge(self, variants: Sequence[Variant], least: int, images: list[Image.Image]) -> Return:
        """How often the judge sees the concept in images, one for each of `jobs`."""
        jobs = self.jobs(variants, least)
        cells = [variants[row][0] for row, _ in jobs]
        seen: list[list[float]] = [[] for _ in variants]
        for (row, _), verdict in zip(jobs, self.examination.examine(images, cells), strict=True):
            cell = self.examination.cells[variants[row][0]]
            seen[row].append(
                statistics.fmean(
                    verdict[domain] == cell.labels[domain] for domain, role in cell.asked if role == FORGET
                )
            )
        return Return.of(seen)

    def compare(
        self,
        name: str,
        variants: Sequence[Variant],
        least: int,
        budget: Budget | None = None,
        **given: Any,
    ) -> Row:
        """A row: the same prompts and noise on both sides. `given` as for `look`."""
        found: dict[bool, tuple[Return, list[Image.Image]]] = {}
        for base in self.sides:
            label = f"{name}, {'base' if base else 'with the adapter'}"
            with self.side(base):
                found[base] = self.look(variants, least, label, **given)
        (adapter, after), (base_found, before) = found[False], found.get(True, (None, []))
        return Row(
            name,
            adapter,
            base_found,
            budget=budget or Budget(),
            prompts=[prompt for _, prompt in variants[:SAMPLES]],
            before=before,
            after=after,
        )

    def pictures(self, count: int, concept: bool = True) -> Pictures:
        """Images that are not judged: the user's, or what the base draws for the prompts that ask for the
        concept, or for those that do not."""
        key = (concept, count)
        if key not in self._pictures:
            cells = self.forget if concept else self.retain
            if not cells:
                raise ValueError("The protocol has no prompts of other things to learn from.")
            spread = (
                [cells[i * len(cells) // count] for i in range(count)]
                if count < len(cells)
                else [cells[i % len(cells)] for i in range(count)]
            )
            if concept and self.images:
                width, height = self.backbone.image_size[::-1]
                images = [
                    image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
                    for image in self.images[:count]
                ]
                spread = spread[: len(images)]
            else:
                seeds = [ATTACKER_SEEDS + i // len(cells) for i in range(count)]
                with self.side(base=True):
                    images = self.draw(
                        [(self.prompt(cell), seed) for cell, seed in zip(spread, seeds, strict=True)],
                        "images to learn from",
                    )
            self._pictures[key] = Pictures(images, spread)
        return self._pictures[key]

    def examples(self, count: int, concept: bool = True) -> Examples:
        """The same images to learn from."""
        key = (concept, count)
        if key not in self._drawn:
            pictures, size = self.pictures(count, concept), self.eval_batch_size
            latents = [
                self.backbone.encode_images(to_pixels(pictures.images[i : i + size]))
                for i in range(0, len(pictures.images), size)
            ]
            self._drawn[key] = Examples(torch.cat(latents), pictures.cells)
        return self._drawn[key]
