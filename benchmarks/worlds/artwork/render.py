"""From SVG to sprites. The SVG is other people's text: only known elements are drawn, and nothing that it
refers to is fetched or opened."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from benchmarks.worlds.artwork.packages import ArtworkError, Icon

SIDE = 80
"""Pixels of a sprite: the largest that a picture of 64 pixels shows is 60."""
COLOUR = "#202020"
"""Of drawings that leave their colour open."""
FAINT = 16
"""Alpha below which a pixel does not count as drawn, of 255."""
LARGEST_BODY = 2**20
"""Characters of an SVG."""
DEEPEST = 32
"""Elements within each other; some hundreds end the process that draws them."""
ELEMENTS = {
    *(
        "svg",
        "g",
        "defs",
        "title",
        "desc",
        "path",
        "rect",
        "circle",
        "ellipse",
        "line",
        "polyline",
        "polygon",
    ),
    *("use", "clipPath", "mask", "linearGradient", "radialGradient", "stop"),
    *("filter", "feFlood", "feBlend", "feComposite", "feColorMatrix", "feGaussianBlur", "feOffset"),
}
"""What the sets draw with. Without `image`, which reads files, and `style` and `text`, which no set needs."""


def render(icon: Icon, what: str) -> np.ndarray:
    """A drawing cut to what is drawn and centred in a square: (SIDE, SIDE, 4) uint8, red, green, blue, alpha.

    Args:
        what: its name in messages.

    Raises:
        ArtworkError: resvg-py is not installed, the SVG is not one of ELEMENTS that refer to each other only,
            or it draws nothing.
    """
    try:
        import resvg_py
    except ImportError:
        raise ArtworkError("resvg-py draws the pictures: get it with `pip install resvg-py`.") from None
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.left:g} {icon.top:g} {icon.width:g} {icon.height:g}" color="{COLOUR}">{icon.body}</svg>'
    )
    reason = unsafe(svg)
    if reason:
        raise ArtworkError(f"{what} is not drawn: {reason}.")
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE, skip_system_fonts=True)
        sprite = _cut(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    except (ValueError, OSError) as error:
        raise ArtworkError(f"{what} cannot be drawn ({error}).") from error
    if sprite is None:
        raise ArtworkError(f"{what} has no picture: its drawing is blank.")
    return sprite


def _cut(image: Image.Image) -> np.ndarray | None:
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= FAINT)).getbbox()
    if box is None:
        return None
    drawn = image.crop(box)
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def unsafe(svg: str) -> str | None:
    """Why an SVG is not to be drawn, in words, or None.

    It may hold ELEMENTS only, refer to its own parts only, be nested no deeper than DEEPEST, and use only
    parts that use no others: otherwise a short text could mean billions of shapes.
    """
    if len(svg) > LARGEST_BODY:
        return f"it has more than {LARGEST_BODY} characters"
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        return f"it is not SVG ({error})"
    for element in root.iter():
        name = local(element.tag)
        if name not in ELEMENTS:
            return f"it has an element {name}"
        for key, value in element.attrib.items():
            if (local(key) == "href" and not value.startswith("#")) or refers_out(value):
                return f"it refers to {value[:40]!r}"
    level, depth = [root], 0
    while level:
        level, depth = [child for element in level for child in element], depth + 1
    if depth > DEEPEST:
        return f"its elements are nested {depth} deep"
    users = {
        element.get("id") for element in root.iter() if any(local(e.tag) == "use" for e in element.iter())
    }
    for element in root.iter():
        targets = {value[1:] for key, value in element.attrib.items() if local(key) == "href"}
        if local(element.tag) == "use" and not targets.isdisjoint(users):
            return "a part that it uses uses another"
    return None


def refers_out(value: str) -> bool:
    """Whether an attribute has a `url(...)` that is no part of the same drawing."""
    return any(not rest.lstrip(" '\"").startswith("#") for rest in value.split("url(")[1:])


def local(name: object) -> str:
    """The name of an element or attribute without its namespace."""
    return str(name).rpartition("}")[2]
