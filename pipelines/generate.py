"""Images from a stock pipeline, the same for everyone: deterministic sampler, noise that depends on prompt
and seed alone."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from PIL import Image
from tqdm.auto import tqdm

from pipelines.backbone import Backbone
from pipelines.flow import NoisyEuler


@contextmanager
def evaluation_mode(
    pipe: DiffusionPipeline, sampler: Callable[[DiffusionPipeline], SchedulerMixin] | None = None
) -> Iterator[None]:
    """Within: the deterministic sampler, or another that is made for the pipeline, the network that denoises
    in eval mode, no inner progress bars. After: sampler, mode and bars as before."""
    backbone = Backbone.of(pipe)
    denoiser = backbone.denoiser
    scheduler, training, bars = pipe.scheduler, denoiser.training, getattr(pipe, "_progress_bar_config", {})
    pipe.scheduler = backbone.deterministic_sampler() if sampler is None else sampler(pipe)
    denoiser.eval()
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        denoiser.train(training)
        pipe.set_progress_bar_config(**bars)


@contextmanager
def adapter_disabled(pipe: DiffusionPipeline) -> Iterator[None]:
    """Within: the base model, bit for bit. After: the adapter as before, trainable where it was trainable."""
    with _trainable_as_before(pipe):
        pipe.disable_lora()
        try:
            yield
        finally:
            pipe.enable_lora()


@contextmanager
def adapter_at(pipe: DiffusionPipeline, scale: float) -> Iterator[None]:
    """Within: the pipeline's adapter at this weight; 0 is the base, bit for bit. After: at weight 1, as
    `load_lora_weights` leaves it."""
    if scale == 0:
        with adapter_disabled(pipe):
            yield
    elif scale == 1:
        yield
    else:
        adapters = pipe.get_active_adapters()
        with _trainable_as_before(pipe):
            pipe.set_adapters(adapters, [scale] * len(adapters))
            try:
                yield
            finally:
                pipe.set_adapters(adapters, [1.0] * len(adapters))


@contextmanager
def _trainable_as_before(pipe: DiffusionPipeline) -> Iterator[None]:
    """After: what carries an adapter, UNet or text encoder, is trainable where it was; peft makes an adapter
    trainable that is switched on."""
    parameters = [p for component in pipe.get_list_adapters() for p in getattr(pipe, component).parameters()]
    trainable = [p.requires_grad for p in parameters]
    try:
        yield
    finally:
        for parameter, was in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(was)


def image_seed(prompt: str, seed: int) -> int:
    """The seed of an image's noise: a hash of prompt and seed, so that no two prompts share noise and no
    list of prompts matters."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:4], "big")


def batch_of(given: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Arguments by name for some of the images: those rows of what is a list, all else as it is."""
    return {name: value[rows] if isinstance(value, list) else value for name, value in given.items()}


@torch.no_grad()
def draw(
    pipe: DiffusionPipeline,
    jobs: Sequence[tuple[str, int]],
    num_inference_steps: int = 30,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    **given: Any,
) -> list[Image.Image]:
    """An image for each (prompt, seed).

    Each gets the same noise whatever batch it is in, whichever device draws it, with or without an adapter.

    Args:
        guidance_scale: None is the pipeline's own default.
        batch_size: images drawn at a time; None goes by the size of the latents.
        given: what else the pipeline is called with; a list has an item for each image.
    """
    guidance = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    height, width = Backbone.of(pipe).image_size
    # A pipeline that begins with an image takes its size from there.
    takes = inspect.signature(pipe.__call__).parameters
    size = {name: side for name, side in (("height", height), ("width", width)) if name in takes}
    batch_size = batch_size or Backbone.of(pipe).usual_batch_size
    images: list[Image.Image] = []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        generators = [torch.Generator().manual_seed(image_seed(prompt, seed)) for prompt, seed in batch]
        if isinstance(pipe.scheduler, NoisyEuler):
            pipe.scheduler.generator = generators
        images += pipe(
            [prompt for prompt, _ in batch],
            num_inference_steps=num_inference_steps,
            generator=generators,
            **size,
            **guidance,
            **batch_of(given, slice(start, start + batch_size)),
        ).images
    return images


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 30,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    progress: str | None = None,
) -> Iterator[tuple[int, int, Image.Image]]:
    """Draw every prompt once a seed; yields (prompt index, seed, image), seed after seed. Images as `draw`
    makes them.

    Args:
        progress: the label of the progress bar; None shows none.
    """
    jobs = [(i, seed) for seed in seeds for i in range(len(prompts))]
    batch_size = batch_size or Backbone.of(pipe).usual_batch_size
    with tqdm(total=len(jobs), desc=progress, disable=progress is None, unit="image", leave=False) as bar:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            images = draw(
                pipe,
                [(prompts[i], seed) for i, seed in batch],
                num_inference_steps,
                guidance_scale,
                batch_size,
            )
            bar.update(len(batch))
            for (i, seed), image in zip(batch, images, strict=True):
                yield i, seed, image
