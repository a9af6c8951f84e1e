"""Pictures to look at: every object in every style, and random scenes with their captions."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.worlds.artwork.pack import Artwork
from benchmarks.worlds.artwork.scenes import SIZE, compose, draw

LABEL = 90
"""Pixels for the names of styles."""


def contact_sheet(artwork: Artwork, columns: int = 32) -> Image.Image:
    """All sprites at SIZE pixels on white: styles as rows, objects as columns, in bands of `columns`."""
    bands = range(0, len(artwork.names), columns)
    height = SIZE * len(artwork.styles) + 14
    columns = min(columns, len(artwork.names))
    sheet = Image.new("RGB", (LABEL + SIZE * columns, height * len(bands)), "white")
    pen = ImageDraw.Draw(sheet)
    for band, start in enumerate(bands):
        for row, style in enumerate(artwork.styles):
            y = band * height + row * SIZE
            pen.text((2, y + SIZE // 2), style, fill="black")
            for column, name in enumerate(artwork.names[start : start + columns]):
                sprite = Image.fromarray(artwork.sprite(style, name)).resize((SIZE - 4, SIZE - 4))
                sheet.paste(sprite, (LABEL + column * SIZE + 2, y + 2), sprite)
        for column, name in enumerate(artwork.names[start : start + columns]):
            pen.text((LABEL + column * SIZE + 1, (band + 1) * height - 13), name[:11], fill="black")
    return sheet


def scene_sheet(artwork: Artwork, rows: int = 6, columns: int = 10, seed: int = 0) -> Image.Image:
    """Random scenes at twice their size, each above its caption."""
    width, height = 2 * SIZE + 8, 2 * SIZE + 46
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(rows * columns):
        rng = np.random.default_rng([seed, i])
        scene = compose(artwork, rng)
        picture = Image.fromarray(draw(artwork, scene, rng)).resize(
            (2 * SIZE, 2 * SIZE), Image.Resampling.NEAREST
        )
        x, y = i % columns * width + 4, i // columns * height
        sheet.paste(picture, (x, y))
        pen.multiline_text((x, y + 2 * SIZE + 2), textwrap.fill(scene.caption, 22), fill="black", spacing=2)
    return sheet
