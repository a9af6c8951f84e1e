"""The before/after picture: images of the base and of the adapter, prompt by prompt."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from common.files import make_directory, write_bytes, write_text
from evaluation.fonts import columns, families_for, visible

logger = logging.getLogger(__name__)

COLUMNS = 8
MAX_BYTES = 500_000
CELL, GAP, MARGIN, LABEL_WIDTH, HEADING = 1.15, 0.05, 0.14, 0.95, 0.3  # inches
FORGET, RETAIN, INK = "#b3261e", "#1b6e4b", "#222222"


@dataclass(frozen=True)
class Pair:
    """One prompt drawn twice from the same noise.

    Attributes:
        before: the base model's image.
        after: the image with the adapter.
        forget: whether the prompt asks for the concept.
    """

    prompt: str
    before: Image.Image
    after: Image.Image
    forget: bool


def before_after(rows: Sequence[Pair], path: str | Path, title: str) -> None:
    """Write the picture as PNG, under 500 kB: the forget prompts on top, then the retain prompts, base above
    adapter. Where no installed font has all characters, the prompts are numbered, and a text file beside the
    picture has them.

    Args:
        title: its first line is the headline; the rest is set smaller below it.

    Raises:
        ValueError: there is nothing to show.
    """
    path, legend = Path(path), ""
    texts = [title, *(row.prompt for row in rows)]
    families, lacking = families_for("".join(texts))
    if lacking:
        listed = [f"{number}: {_plain(row.prompt)}" for number, row in enumerate(rows, start=1)]
        rows = [replace(row, prompt=f"prompt {number}") for number, row in enumerate(rows, start=1)]
        legend = "\n".join([_plain(title), "", *listed]) + "\n"
        title = "".join("?" if c in lacking else c for c in title)
        logger.warning(
            f"No installed font has {' '.join(sorted(lacking)[:8])}; the prompts of {path.name} are in "
            f"{path.stem}.txt. Install a font that has them, such as one of Noto's."
        )
    bands = [_Band(True, block) for block in _blocks([r for r in rows if r.forget])]
    bands += [_Band(False, block) for block in _blocks([r for r in rows if not r.forget])]
    if not bands:
        raise ValueError("there is no image to show")
    with rc_context({"font.family": families}):
        picture = _png(_draw(bands, title))
    make_directory(path.parent)
    write_bytes(path, picture)
    if legend:
        write_text(path.with_suffix(".txt"), legend)
    else:
        path.with_suffix(".txt").unlink(missing_ok=True)  # of an older picture


@dataclass(frozen=True)
class _Band:
    forget: bool
    pairs: list[Pair]

    @property
    def caption_height(self) -> float:
        return 0.06 + 0.14 * max(_caption(pair.prompt).count("\n") + 1 for pair in self.pairs)

    @property
    def height(self) -> float:
        return HEADING + self.caption_height + 2 * CELL + GAP + 0.2


def _blocks(pairs: list[Pair]) -> list[list[Pair]]:
    return [pairs[i : i + COLUMNS] for i in range(0, len(pairs), COLUMNS)]


def _draw(bands: list[_Band], title: str) -> Figure:
    columns = max(3, *(len(band.pairs) for band in bands))
    width = LABEL_WIDTH + columns * (CELL + GAP) - GAP + 2 * MARGIN
    headline, _, subtitle = title.partition("\n")
    headline, subtitle = fill(_plain(headline), int(width * 8.5)), fill(_plain(subtitle), int(width * 12))
    headline_height = 0.24 * (headline.count("\n") + 1)
    title_height = 0.34 + headline_height + (0.17 * (subtitle.count("\n") + 1) if subtitle else 0)
    height = title_height + sum(band.height for band in bands) + MARGIN
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        MARGIN / width,
        1 - 0.16 / height,
        headline,
        fontsize=13,
        fontweight="bold",
        color=INK,
        va="top",
        parse_math=False,
    )
    figure.text(
        MARGIN / width,
        1 - (0.2 + headline_height) / height,
        subtitle,
        fontsize=9.5,
        color=INK,
        va="top",
        parse_math=False,
    )
    top = height - title_height
    for band in bands:
        colour = FORGET if band.forget else RETAIN
        name = "To forget: prompts that ask for it" if band.forget else "To keep: all other prompts"
        figure.add_artist(
            Line2D([MARGIN / width, 1 - MARGIN / width], [top / height] * 2, color=colour, linewidth=1.5)
        )
        figure.text(
            MARGIN / width,
            (top - 0.07) / height,
            name,
            fontsize=10.5,
            fontweight="bold",
            color=colour,
            va="top",
        )
        for row, label in enumerate(("base", "with adapter")):
            bottom = top - HEADING - band.caption_height - (row + 1) * CELL - row * GAP
            figure.text(
                MARGIN / width, (bottom + CELL / 2) / height, label, fontsize=9.5, color=INK, va="center"
            )
            for column, pair in enumerate(band.pairs):
                left = LABEL_WIDTH + MARGIN + column * (CELL + GAP)
                axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
                _show(axes, pair.after if row else pair.before, colour)
                if row == 0:
                    axes.set_title(_caption(pair.prompt), fontsize=8, color=INK, pad=3, parse_math=False)
        top -= band.height
    return figure


def _show(axes: Axes, image: Image.Image, colour: str) -> None:
    small = max(image.size) < 128
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest" if small else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1.2)


def _plain(text: str) -> str:
    return " ".join(visible(text).split())


def _caption(prompt: str, width: int = 17, lines: int = 3) -> str:
    prompt = _plain(prompt)
    width = max(1, width * len(prompt) // max(1, columns(prompt)))
    wrapped = fill(prompt, width).split("\n")
    return "\n".join(
        wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], wrapped[lines - 1][: width - 1] + "…"]
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    while buffer.tell() > MAX_BYTES:
        buffer = io.BytesIO()
        image.quantize(256).save(buffer, format="png", optimize=True)
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)
    return buffer.getvalue()
