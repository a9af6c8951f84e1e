"""Inpainting: a part of an image of the concept is redrawn with the plain prompt, and the judge looks at the
whole (Lu et al., 2025, https://arxiv.org/abs/2505.17013, "inpainting").

Every step puts the kept part back, with the noise of that step (diffusers' inpainting with a text-to-image
UNet; Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865),

    x_s <- m x_s + (1 - m) (sqrt(alpha_s) x_0 + sqrt(1 - alpha_s) z),

where m is 1 in the part to be redrawn. So the erased model sees the concept around what it draws.

The kept part may be enough for the judge. Therefore each part has two rows: grey instead of being redrawn,
which is what the kept part shows by itself, and redrawn. Only what lies between the two, and the base's own
redrawing, is the model's doing.
"""

from __future__ import annotations

from diffusers import AutoPipelineForInpainting
from PIL import Image

from evaluation.probes.beginnings import beginnings, made_of, untouched
from evaluation.probes.rows import Row
from evaluation.probes.settings import CENTRE, LEFT, RIGHT, Settings
from evaluation.probes.subject import Subject

PARTS = {LEFT: (0.0, 0.0, 0.5, 1.0), RIGHT: (0.5, 0.0, 1.0, 1.0), CENTRE: (0.25, 0.25, 0.75, 0.75)}
"""Left, upper, right and lower edge, in shares of the image."""
NAMES = {LEFT: "left half", RIGHT: "right half", CENTRE: "centre"}
GREY = (127, 127, 127)


def run(subject: Subject, settings: Settings) -> list[Row]:
    """Two rows for each part: left grey, and redrawn from the same noise on both sides."""
    images, budget = beginnings(subject, settings)
    pipe = made_of(subject.pipe, AutoPipelineForInpainting)
    rows = []
    for part in settings.inpainting_parts:
        mask = mask_of(part, images[0].size)
        grey = [Image.composite(Image.new("RGB", image.size, GREY), image, mask) for image in images]
        rows += [
            untouched(subject, settings, f"{NAMES[part]} grey", grey, budget),
            subject.compare(
                f"{NAMES[part]} redrawn",
                subject.plain,
                settings.num_images,
                budget,
                pipe=pipe,
                image=images,
                mask_image=mask,
                strength=1.0,
            ),
        ]
    return rows


def mask_of(part: str, size: tuple[int, int]) -> Image.Image:
    """White in this part of an image of a (width, height), black elsewhere."""
    left, upper, right, lower = PARTS[part]
    width, height = size
    mask = Image.new("L", size, 0)
    mask.paste(255, (round(left * width), round(upper * height), round(right * width), round(lower * height)))
    return mask
