"""Images of the concept to begin with, and the stock pipelines that begin with an image."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline
from PIL import Image

from evaluation.probes.rows import SAMPLES, Budget, Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from pipelines.backbone import Backbone


def made_of(
    pipe: DiffusionPipeline, kind: type[AutoPipelineForImage2Image] | type[AutoPipelineForInpainting]
) -> DiffusionPipeline:
    """The stock pipeline of this kind that shares all parts of a text-to-image pipeline but the sampler:
    some pipelines correct the settings of the one they are given."""
    sampler = Backbone.of(pipe).deterministic_sampler()
    return kind.from_pipe(pipe, scheduler=sampler, requires_safety_checker=False, add_watermarker=False)


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


def judged(
    subject: Subject, settings: Settings, name: str, images: Mapping[bool, list[Image.Image]], budget: Budget
) -> Row:
    """A row of images that are there already.

    Args:
        images: of the plain prompts, with the adapter (False) and on the base, if that is a side.
    """
    found = {base: subject.judge(subject.plain, settings.num_images, of) for base, of in images.items()}
    return Row(
        name,
        found[False],
        found.get(True),
        budget=budget,
        prompts=[prompt for _, prompt in subject.plain[:SAMPLES]],
        before=images.get(True, [])[:SAMPLES],
        after=images[False][:SAMPLES],
    )
