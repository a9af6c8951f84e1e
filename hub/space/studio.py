"""The images of a page: a base and an adapter on it at any scale, from the same noise, and no image drawn
twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image

from common.network import resolve_directory
from hub.adapter import find_adapter, load_adapter
from hub.provenance import RESULTS_NAME
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import adapter_disabled, ddim, image_seed

MAX_SCALE, MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 1.5, 100, 20.0, 2**32 - 1
KEPT_IMAGES = 64
"""How many images are kept for those who ask again."""

OnStep = Callable[[int], None]
"""Is told how many denoising steps of an image are done."""


@dataclass(frozen=True)
class Settings:
    """What the base's image depends on; with an adapter, its file and its scale come to it."""

    prompt: str
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Drawing:
    """`withheld`: the base's safety checker has blackened the image."""

    image: Image.Image
    withheld: bool


@dataclass(frozen=True)
class Worn:
    """The adapter that a pipeline carries: what it was asked for as, its file as it was then, its name in
    the pipeline."""

    asked: str
    path: Path
    changed: int
    name: str


def read_settings(prompt: object, seed: object, steps: object, guidance: object) -> Settings:
    """What came from a page or from a program.

    Raises:
        ValueError: something is missing or out of its range.
    """
    text = " ".join(prompt.split()) if isinstance(prompt, str) else ""
    if not text:
        raise ValueError("Write a prompt first.")
    return Settings(
        text,
        int(number("The seed", seed, 0, MAX_SEED)),
        int(number("The number of steps", steps, 1, MAX_STEPS)),
        number("The guidance", guidance, 0, MAX_GUIDANCE),
    )


def number(what: str, value: object, low: float, high: float) -> float:
    """
    Raises:
        ValueError: it is none, or not from low to high.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:.10g}.")
    return float(value)


def fetch_adapter(name_or_path: str, revision: str | None = None) -> Path:
    """The adapter's file in a directory or from the Hub, with its results.json beside it if it has one.

    Raises:
        ValueError: there is none.
    """
    path = find_adapter(name_or_path, LORA_WEIGHT_NAME_SAFE, revision)
    resolve_directory(name_or_path, revision, [RESULTS_NAME])
    return path


class Studio:
    """Draws for one page after another; `drawn` counts the images that were not at hand.

    Args:
        base, revision, variant: as `pipelines.base.load_pipeline` takes them.

    Raises:
        ValueError: there is no such pipeline.
    """

    def __init__(self, base: str | Path, revision: str | None = None, variant: str | None = None) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = load_pipeline(base, revision, variant, safety_checker=True).to(device)
        self.pipe.scheduler = ddim(self.pipe)
        self.worn: Worn | None = None
        self.drawn = 0
        self._drawings: OrderedDict[object, Drawing] = OrderedDict()
        self._lock = threading.RLock()

    def wear(self, name_or_path: str, revision: str | None = None) -> Path:
        """Load an adapter in place of the one before, unless it is the same file unchanged; returns the file.

        Raises:
            ValueError: there is none or it does not fit the base; the one before stays then.
        """
        with self._lock:
            path = fetch_adapter(name_or_path, revision)
            changed, before = path.stat().st_mtime_ns, self.worn
            if before is None or (before.path, before.changed) != (path, changed):
                name = load_adapter(self.pipe, path.parent, path.name)
                if before is not None:
                    self.pipe.delete_adapters(before.name)
            else:
                name = before.name
            self.worn = Worn(name_or_path, path, changed, name)
            return path

    def draw(
        self, settings: Settings, adapter: str = "", scale: float = 0.0, on_step: OnStep | None = None
    ) -> Drawing:
        """An image of the base, or with an adapter; at scale 0 it is the base's own.

        Args:
            adapter: as `wear` takes it; if it is another than the one worn it is loaded first.

        Raises:
            ValueError: the prompt is too long, or there is no such adapter.
        """
        with self._lock:
            if scale and (self.worn is None or self.worn.asked != adapter):
                self.wear(adapter)
            key = (settings, scale, self.worn) if scale else settings
            if key not in self._drawings:
                self._drawings[key] = self._draw(settings, scale, on_step)
                self.drawn += 1
            self._drawings.move_to_end(key)
            while len(self._drawings) > KEPT_IMAGES:
                self._drawings.popitem(last=False)
            return self._drawings[key]

    def _draw(self, settings: Settings, scale: float, on_step: OnStep | None) -> Drawing:
        Backbone.of(self.pipe).check_window(settings.prompt)
        if scale:
            self.pipe.set_adapters(self.worn.name, scale)

        def step_done(
            pipe: object, step: int, timestep: int, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            if on_step is not None:
                on_step(step + 1)
            return tensors

        with adapter_disabled(self.pipe) if self.worn and not scale else nullcontext():
            made = self.pipe(
                settings.prompt,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=torch.Generator().manual_seed(image_seed(settings.prompt, settings.seed)),
                callback_on_step_end=step_done,
            )
        return Drawing(made.images[0], any(getattr(made, "nsfw_content_detected", None) or []))
