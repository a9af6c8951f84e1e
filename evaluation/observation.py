"""Draw and judge shard by shard: the base and an adapter at several weights, from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from evaluation.examination import Examination
from evaluation.shards import SHARD_SIZE, Job, Seen, Side, split
from pipelines.generate import adapter_at, draw

if TYPE_CHECKING:
    from evaluation.measures import Measures

BASE = 0.0
"""The adapter's weight at which it is the base."""
CHANGED = "changed"
"""The measurement that says whether the adapter changed any pixel of an image."""
COUNT = "count of "
"""The names of measurements that are what the judge counts begin with it."""


@dataclass(frozen=True)
class Store:
    """Where images and verdicts are kept, one directory for each side.

    Attributes:
        base: the base's side; several adapters may share it.
        sides: by weight of the adapter, its side.
    """

    base: Side
    sides: Mapping[float, Side]

    def __getitem__(self, scale: float) -> Side:
        return self.base if scale == BASE else self.sides[scale]


class Observer:
    """Draws and judges the images of an examination at every weight of the adapter; what a store holds is
    neither drawn nor judged again.

    Args:
        jobs: the images, by prompt and seed.
        guidance: the guidance scale of each prompt's images; None is the pipeline's default.
        scales: weights of the adapter; the base always comes first.
        shown: images to keep for a picture.

    Attributes:
        pictures: by weight, the images of `shown` in the shards observed so far.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        examination: Examination,
        jobs: Sequence[Job],
        *,
        scales: Sequence[float],
        num_inference_steps: int,
        guidance: Sequence[float | None],
        batch_size: int,
        measures: Measures | None,
        store: Store | None,
        shown: Sequence[Job],
    ) -> None:
        self.pipe, self.examination, self.measures, self.store = pipe, examination, measures, store
        self.num_inference_steps, self.guidance, self.batch_size = num_inference_steps, guidance, batch_size
        self.shards = split(jobs, SHARD_SIZE if store else batch_size)
        self.scales = [BASE, *sorted({float(scale) for scale in scales} - {BASE})]
        self.shown = shown
        self.pictures: dict[float, dict[Job, Image.Image]] = {scale: {} for scale in self.scales}
        self._judged_by = (
            f"{examination.identity()}\n{measures.identity() if measures else ''}" if store else ""
        )

    def observe(self, shards: Sequence[int], label: str | None) -> dict[float, list[Seen]]:
        """What is seen in these shards, by weight. `label` is the progress bar's; None shows none."""
        found: dict[float, list[Seen]] = {scale: [] for scale in self.scales}
        total = len(self.scales) * sum(len(self.shards[k]) for k in shards)
        with tqdm(total=total, desc=label, disable=label is None, unit="image", leave=False) as bar:
            for k in shards:
                base: list[Image.Image] = []
                for scale in self.scales:
                    seen = self._known(scale, k)
                    if seen is None:
                        base = base or self._images(BASE, k)
                        seen = self._look(scale, k, base)
                    found[scale].append(seen)
                    bar.update(len(self.shards[k]))
        return found

    def keep(self, pictures: Mapping[float, Mapping[Job, Image.Image]]) -> None:
        """Add images of `shown` that another process has drawn, by weight."""
        for scale, images in pictures.items():
            self.pictures[scale] |= images

    def picture(self, scale: float, job: Job) -> Image.Image:
        """One of the images to show."""
        return self.pictures[scale][job]

    def _look(self, scale: float, k: int, base: list[Image.Image]) -> Seen:
        shard, examination = self.shards[k], self.examination
        images = base if scale == BASE else self._images(scale, k)
        ids = [i for i, _ in shard]
        values = {}
        if self.measures:
            values = self.measures.observe(
                images, [examination.cells[i].prompt for i in ids], None if scale == BASE else base
            )
        values[CHANGED] = np.array(
            [before.tobytes() != after.tobytes() for before, after in zip(base, images, strict=True)],
            dtype=np.uint8,
        )
        values |= {f"{COUNT}{name}": rows for name, rows in examination.count(images).items()}
        seen = Seen([dict(verdict) for verdict in examination.examine(images, ids)], values)
        self.pictures[scale] |= {
            job: image for job, image in zip(shard, images, strict=True) if job in self.shown
        }
        if self.store:
            self.store[scale].write_seen(k, self._key(self.store, scale, k), seen)
        return seen

    def _images(self, scale: float, k: int) -> list[Image.Image]:
        draw_it = partial(self._draw, scale, k)
        return self.store[scale].images(k, self.shards[k], draw_it) if self.store else draw_it()

    def _draw(self, scale: float, k: int) -> list[Image.Image]:
        """A batch has one guidance scale: images of the same one are drawn together."""
        images: dict[Job, Image.Image] = {}
        with adapter_at(self.pipe, scale):
            for guidance in dict.fromkeys(self.guidance[i] for i, _ in self.shards[k]):
                jobs = [(i, seed) for i, seed in self.shards[k] if self.guidance[i] == guidance]
                asked = [(self.examination.cells[i].prompt, seed) for i, seed in jobs]
                drawn = draw(self.pipe, asked, self.num_inference_steps, guidance, self.batch_size)
                images |= dict(zip(jobs, drawn, strict=True))
        return [images[job] for job in self.shards[k]]

    def _known(self, scale: float, k: int) -> Seen | None:
        """What the store knows of a shard whose images, and the base's, are undamaged."""
        if self.store is None or not all(self.store[of].is_whole(k, self.shards[k]) for of in {BASE, scale}):
            return None
        seen = self.store[scale].read_seen(k, self._key(self.store, scale, k))
        if seen is not None:
            self.pictures[scale] |= {
                job: self.store[scale].image(job) for job in self.shards[k] if job in self.shown
            }
        return seen

    def _key(self, store: Store, scale: float, k: int) -> str:
        """Observations of an adapter's images depend on the base's too, which they are compared with."""
        return store[scale].key(k, self._judged_by, *([store.base.key(k)] if scale != BASE else []))
