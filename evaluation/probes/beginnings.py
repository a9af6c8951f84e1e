"""Images of the concept to begin with, and the stock pipelines that begin with an image."""

from __future__ import annotations

from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline
from PIL import Image

from evaluation.probes.rows import SAMPLES, Budget, Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from pipelines.generate import ddim


def made_of(
    pipe: DiffusionPipeline, kind: type[AutoPipelineForImage2Image] | type[AutoPipelineForInpainting]
) -> DiffusionPipeline:
    """The stock pipeline of this kind that shares all parts of a text-to-image pipeline but the sampler:
    some pipelines correct the settings of the one they are given."""
    return kind.from_pipe(pipe, scheduler=ddim(pipe), requires_safety_checker=False, add_watermarker=False)


def beginnings(subject: Subject, settings: Settings) -> tuple[list[Image.Image], Budget]:
    """For each image that is judged of the plain prompts, one of the concept to begin with, and what they
    cost.

    It is one of the same prompt's, if there is one, another for each seed as far as there are enough.
    """
    pictures = subject.pictures(settings.num_concept_images)
    plain, rows = subject.plain, range(len(pictures.images))
    images = []
    for row, seed in subject.jobs(plain, settings.num_images):
        own = [i for i in rows if pictures.cells[i] == plain[row][0]]
        images.append(pictures.images[own[seed % len(own)] if own else (row + seed) % len(rows)])
    return images, Budget(images=len(rows))


def untouched(
    subject: Subject, settings: Settings, name: str, images: list[Image.Image], budget: Budget
) -> Row:
    """What the judge sees in images before anything is drawn, which is the same on both sides."""
    plain, base = subject.plain, True in subject.sides
    found, shown = subject.judge(plain, settings.num_images, images), images[:SAMPLES]
    return Row(
        name,
        found,
        found if base else None,
        budget=budget,
        prompts=[prompt for _, prompt in plain[:SAMPLES]],
        before=shown if base else [],
        after=shown,
    )
