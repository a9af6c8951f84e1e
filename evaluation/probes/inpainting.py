"""Inpainting: a part of an image of the concept is redrawn with the plain prompt, and the judge looks at the
whole (Lu et al., 2025, https://arxiv.org/abs/2505.17013, "inpainting").

Every step puts the kept part back, with the noise of that step (diffusers' inpainting with a text-to-image
UNet; Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865),

    x_s <- m x_s + (1 - m) (sqrt(alpha_s) x_0 + sqrt(1 - alpha_s) z),

where m is 1 in the part to be redrawn. So the erased model sees the concept around what it draws.

The kept part may be enough for the judge. Therefore each part has three rows: grey instead of being redrawn,
which is what the kept part shows by itself; redrawn; and redrawn with all else grey, which is the model's
own doing.

Pixels of the kept part are put back as they were, as diffusers advises: a VAE's decoder looks at the whole
image, and what is drawn beside it changes their colours.
"""

from __future__ import annotations

from diffusers import AutoPipelineForInpainting
from PIL import Image

from evaluation.probes.beginnings import beginnings, judged, made_of
from evaluation.probes.rows import Row
from evaluation.probes.settings import CENTRE, LEFT, RIGHT, Settings
from evaluation.probes.subject import Subject

PARTS = {LEFT: (0.0, 0.0, 0.5, 1.0), RIGHT: (0.5, 0.0, 1.0, 1.0), CENTRE: (0.25, 0.25, 0.75, 0.75)}
"""Left, upper, right and lower edge, in shares of the image."""
NAMES = {LEFT: "left half", RIGHT: "right half", CENTRE: "centre"}
GREY = (127, 127, 127)


def run(subject: Subject, settings: Settings) -> list[Row]:
    """Three rows for each part: left grey, redrawn from the same noise on both sides, and that alone."""
    images, budget = beginnings(subject, settings)
    pipe = made_of(subject.pipe, AutoPipelineForInpainting)
    plain, grey = subject.plain, [Image.new("RGB", image.size, GREY) for image in images]
    jobs = [(plain[row][1], seed) for row, seed in subject.jobs(plain, settings.num_images)]
    rows = []
    for part in settings.inpainting_parts:
        name, mask, drawn = NAMES[part], mask_of(part, images[0].size), {}
        for base in subject.sides:
            label = f"{name} redrawn, {'base' if base else 'with the adapter'}"
            with subject.side(base):
                drawn[base] = subject.draw(jobs, label, pipe, image=images, mask_image=mask, strength=1.0)
        shown = {
            f"{name} grey": dict.fromkeys(drawn, within(mask, grey, images)),
            f"{name} redrawn": {base: within(mask, new, images) for base, new in drawn.items()},
            f"{name} redrawn, all else grey": {base: within(mask, new, grey) for base, new in drawn.items()},
        }
        rows += [judged(subject, settings, title, of, budget) for title, of in shown.items()]
    return rows


def within(mask: Image.Image, inside: list[Image.Image], outside: list[Image.Image]) -> list[Image.Image]:
    """Of each two images the first where the mask is white, and the second elsewhere."""
    return [Image.composite(one, other, mask) for one, other in zip(inside, outside, strict=True)]


def mask_of(part: str, size: tuple[int, int]) -> Image.Image:
    """White in this part of an image of a (width, height), black elsewhere."""
    left, upper, right, lower = PARTS[part]
    width, height = size
    mask = Image.new("L", size, 0)
    mask.paste(255, (round(left * width), round(upper * height), round(right * width), round(lower * height)))
    return mask
