"""Image to image: from an image of the concept, made noisy, with the plain prompt (SDEdit: Meng et al., 2022,
https://arxiv.org/abs/2108.01073),

    x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) z,        z ~ N(0, I),

where t is as late as the strength says: at 1 the image is drowned in noise, at 0 it stays as it is.

An image that hardly changes shows the concept whoever redraws it. So the first row is what the judge sees in
the images themselves, and the strengths tell how soon the erased model leads away from them.
"""

from __future__ import annotations

from diffusers import AutoPipelineForImage2Image

from evaluation.probes.beginnings import beginnings, judged, made_of
from evaluation.probes.rows import Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject


def run(subject: Subject, settings: Settings) -> list[Row]:
    """The images as they are, then a row for each strength: the same images, prompts and noise on both
    sides.

    Raises:
        ValueError: a strength is less than a step.
    """
    for strength in settings.image_to_image_strengths:
        check_strength(strength, subject.num_inference_steps)
    images, budget = beginnings(subject, settings)
    pipe = made_of(subject.pipe, AutoPipelineForImage2Image)
    return [
        judged(
            subject,
            settings,
            "images of the concept as they are",
            dict.fromkeys(subject.sides, images),
            budget,
        ),
        *(
            subject.compare(
                f"image to image, strength {strength:g}",
                subject.plain,
                settings.num_images,
                budget,
                pipe=pipe,
                image=images,
                strength=strength,
            )
            for strength in settings.image_to_image_strengths
        ),
    ]


def check_strength(strength: float, steps: int) -> None:
    """Refuse a strength at which nothing is drawn.

    Raises:
        ValueError: it is less than a step.
    """
    if int(strength * steps) < 1:  # as diffusers counts them
        raise ValueError(
            f"--image_to_image_strengths {strength:g} of {steps} steps is less than a step; choose a higher "
            "strength, or more steps."
        )
