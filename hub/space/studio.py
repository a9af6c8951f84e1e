"""The images of a page: a base, and an adapter on it at any scale, from the same noise, each drawn once."""

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
from common.texts import is_text
from hub.adapter import find_adapter, load_adapter
from hub.results import RESULTS_NAME
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import adapter_disabled, image_seed

MAX_SCALE, MAX_STEPS, MAX_GUIDANCE, MAX_SEED = 1.5, 100, 20.0, 2**32 - 1
LONGEST_PROMPT, LONGEST_NAME = 2000, 1000
"""Characters; the text windows of all bases are far shorter, and no file system takes more in a name."""
KEPT_IMAGES = 64
"""Number of images that are cached."""

OnStep = Callable[[int], None]
"""Called with the number of denoising steps done."""


@dataclass(frozen=True)
class Settings:
    """What the base's image depends on; with an adapter, its file and its scale too."""

    prompt: str
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Drawing:
    """An image; `withheld` if the base's safety checker has blackened it."""

    image: Image.Image
    withheld: bool


@dataclass(frozen=True)
class LoadedAdapter:
    """The adapter that a pipeline has loaded.

    Attributes:
        asked: the name or path it was asked for by.
        path: its file.
        changed: when the file was last changed.
        name: its name in the pipeline.
    """

    asked: str
    path: Path
    changed: int
    name: str


def read_settings(prompt: object, seed: object, steps: object, guidance: object) -> Settings:
    """Settings from a page or from a program.

    Raises:
        ValueError: one is missing or out of its range.
    """
    text = " ".join(read_text("The prompt", prompt, LONGEST_PROMPT).split())
    if not text:
        raise ValueError("Write a prompt first.")
    return Settings(
        text,
        round(number("The seed", seed, 0, MAX_SEED)),
        round(number("The number of steps", steps, 1, MAX_STEPS)),
        number("The guidance", guidance, 0, MAX_GUIDANCE),
    )


def read_scale(scale: object) -> float:
    """The adapter's scale.

    Raises:
        ValueError: it is missing or out of its range.
    """
    return number("The scale", scale, 0, MAX_SCALE)


def read_name(name: object) -> str:
    """A directory or an id on the Hub; empty if none is given.

    Raises:
        ValueError: it cannot be either.
    """
    return read_text("The adapter's name", name, LONGEST_NAME).strip()


def read_text(what: str, value: object, longest: int) -> str:
    """A text; empty if nothing is given.

    Raises:
        ValueError: it is none, or too long, or holds what no text holds.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > longest or "\0" in value or not is_text(value):
        raise ValueError(f"{what} must be a text of at most {longest} characters.")
    return value


def number(what: str, value: object, low: float, high: float) -> float:
    """A number in a range.

    Raises:
        ValueError: it is not a number, or out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:.10g}.")
    return float(value)


def fetch_adapter(name_or_path: str, revision: str | None = None) -> Path:
    """The adapter's file in a directory or from the Hub, next to its results.json if it has one.

    Raises:
        ValueError: there is none.
    """
    path = find_adapter(name_or_path, LORA_WEIGHT_NAME_SAFE, revision)
    resolve_directory(name_or_path, revision, [RESULTS_NAME])
    return path


class Studio:
    """Draws for one request after another; `drawn` counts the images that were not cached.

    Args:
        base, revision, variant, without_t5: as in `pipelines.base.load_pipeline`.

    Raises:
        ValueError: there is no such pipeline.
    """

    def __init__(
        self,
        base: str | Path,
        revision: str | None = None,
        variant: str | None = None,
        without_t5: bool = False,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = load_pipeline(
            base, revision, variant=variant, safety_checker=True, without_t5=without_t5
        ).to(device)
        self.pipe.scheduler = Backbone.of(self.pipe).deterministic_sampler()
        self.loaded: LoadedAdapter | None = None
        self.drawn = 0
        self._drawings: OrderedDict[object, Drawing] = OrderedDict()
        self._lock = threading.RLock()

    def load(self, name_or_path: str, revision: str | None = None) -> Path:
        """Load an adapter in place of the previous one, unless it is the same unchanged file; its file.

        Raises:
            ValueError: there is none or it does not fit the base; the previous one then stays.
        """
        with self._lock:
            path = fetch_adapter(name_or_path, revision)
            changed, before = path.stat().st_mtime_ns, self.loaded
            if before is None or (before.path, before.changed) != (path, changed):
                name = load_adapter(self.pipe, path.parent, path.name)
                if before is not None:
                    self.pipe.delete_adapters(before.name)
            else:
                name = before.name
            self.loaded = LoadedAdapter(name_or_path, path, changed, name)
            return path

    def draw(
        self, settings: Settings, adapter: str = "", scale: float = 0.0, on_step: OnStep | None = None
    ) -> Drawing:
        """An image of the base, or with an adapter; at scale 0 it is the base's own.

        Args:
            adapter: as in `load`; if it is not the loaded one, it is loaded first.

        Raises:
            ValueError: the prompt is too long, or there is no such adapter.
        """
        with self._lock:
            if scale and (self.loaded is None or self.loaded.asked != adapter):
                self.load(adapter)
            key = (settings, scale, self.loaded) if scale else settings
            if key not in self._drawings:
                self._drawings[key] = self._draw(settings, scale, on_step)
                self.drawn += 1
            self._drawings.move_to_end(key)
            while len(self._drawings) > KEPT_IMAGES:
                self._drawings.popitem(last=False)
            return self._drawings[key]

    def _draw(self, settings: Settings, scale: float, on_step: OnStep | None) -> Drawing:
        Backbone.of(self.pipe).check_window(settings.prompt)
        if scale and self.loaded:
            self.pipe.set_adapters(self.loaded.name, scale)

        def step_done(
            pipe: object, step: int, timestep: int, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            if on_step is not None:
                on_step(step + 1)
            return tensors

        with adapter_disabled(self.pipe) if self.loaded and not scale else nullcontext():
            made = self.pipe(
                settings.prompt,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=torch.Generator().manual_seed(image_seed(settings.prompt, settings.seed)),
                callback_on_step_end=step_done,
            )
        return Drawing(made.images[0], any(getattr(made, "nsfw_content_detected", None) or []))
