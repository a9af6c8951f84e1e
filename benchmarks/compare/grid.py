"""The same prompts and seed drawn by the base and by each method's adapter, nothing chosen by looking: one
picture a concept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from diffusers import DiffusionPipeline
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.compare.methods import NAMES
from benchmarks.compare.runs import Erasure
from benchmarks.jobs import slug
from evaluation.examination import Examination
from hub.adapter import load_adapter
from pipelines.generate import evaluation_mode, generate

FORGET, RETAIN = "#b3261e", "#1b6e4b"
SHOWN = 6
"""Forget prompts, and as many retain prompts."""


def draw_rows(
    pipe: DiffusionPipeline,
    adapters: Mapping[str, Path | None],
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance_scale: float | None = None,
) -> dict[str, list[Image.Image]]:
    """For each name its adapter's images of the prompts, None being the base; the pipeline is the base
    before and after."""
    rows = {}
    for name, directory in adapters.items():
        if directory:
            load_adapter(pipe, directory)
        with evaluation_mode(pipe):
            rows[name] = [
                image for *_, image in generate(pipe, prompts, seeds, guidance_scale=guidance_scale)
            ]
        pipe.unload_lora_weights()
    return rows


def method_grid(
    pipe: DiffusionPipeline,
    examination: Examination,
    adapters: Mapping[str, Path | None],
    *,
    path: Path,
    title: str,
    seed: int = 0,
) -> None:
    """Write the picture: a row a method, forget prompts on the left, retain prompts on the right."""
    ids = examination.showcase(SHOWN)
    prompts = [examination.prompts[i] for i in ids]
    colours = [FORGET if examination.forget[i] else RETAIN for i in ids]
    rows = draw_rows(pipe, adapters, prompts, [seed], examination.guidance_scale)
    picture(rows, prompts, colours, path=path, title=title)


def concept_grids(
    pipe: DiffusionPipeline,
    examine: Callable[[str], Examination],
    erasures: Sequence[Erasure],
    output_dir: Path,
) -> None:
    """A picture for each concept, `OUTPUT_DIR/<concept>.png`: what the base and all methods draw.

    Args:
        examine: from a concept, whose prompts are drawn.
        erasures: one of each concept and method.
    """
    for concept in dict.fromkeys(erasure.concept for erasure in erasures):
        of = [erasure for erasure in erasures if erasure.concept == concept]
        adapters: dict[str, Path | None] = {"base": None}
        adapters |= {NAMES[erasure.method]: erasure.directory(output_dir) for erasure in of}
        method_grid(
            pipe,
            examine(concept),
            adapters,
            path=output_dir / f"{slug(concept)}.png",
            title=f"Erased: {concept} (training seed {of[0].seed})",
        )


def picture(
    rows: Mapping[str, Sequence[Image.Image]],
    captions: Sequence[str],
    colours: Sequence[str],
    *,
    path: Path,
    title: str,
) -> None:
    """Write images in rows that have names, under a caption and in a frame of a colour for each column."""
    figure = Figure(figsize=(1.3 + 1.05 * len(captions), 0.9 + 1.05 * len(rows)), dpi=90)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(len(rows), len(captions), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, image, colour in zip(line, images, colours, strict=True):
            axis.imshow(
                np.asarray(image.convert("RGB")),
                interpolation="nearest" if max(image.size) < 128 else "antialiased",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color(colour)
    for axis, caption in zip(axes[0], captions, strict=True):
        axis.set_title(fill(caption, 16), fontsize=7, parse_math=False)
    figure.subplots_adjust(
        left=1.2 / figure.get_figwidth(),
        right=0.99,
        top=1 - 0.85 / figure.get_figheight(),
        bottom=0.01,
        wspace=0.06,
        hspace=0.06,
    )
    figure.savefig(path)
