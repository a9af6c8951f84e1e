"""The pack: the chosen objects in all styles, whose they are and what they are called, as one file.

A zip of `pack.json`, `CREDITS.md` and one PNG for each style, in which the sprites of all objects stand below
each other. It is made where the npm packages are, and read where they are not.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.worlds.artwork.objects import ArtObject, choose
from benchmarks.worlds.artwork.packages import (
    STYLES,
    ArtworkError,
    IconSet,
    Source,
    Style,
    credits,
    read_entries,
    read_icons,
    text,
)
from benchmarks.worlds.artwork.render import FAINT, SIDE, render
from common.files import make_directory, write_bytes

INDEX, CREDITS = "pack.json", "CREDITS.md"
FORMAT = 1
LARGEST = 2**26
"""Bytes of a member, and pixels of one of its pictures, that are read at most."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that equal contents are equal bytes."""


@dataclass(frozen=True, eq=False)
class Artwork:
    """Everything that scenes are made of.

    Attributes:
        styles: names, in the order of `sprites`.
        objects: in the order of `sprites`.
        sources: whose drawings and words these are.
        sprites: (styles, objects, SIDE, SIDE, 4) uint8; red, green, blue, alpha.
    """

    styles: tuple[str, ...]
    objects: tuple[ArtObject, ...]
    sources: tuple[Source, ...]
    sprites: np.ndarray

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the objects."""
        return tuple(obj.name for obj in self.objects)

    @cached_property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Names of the members of each category."""
        tags = sorted({tag for obj in self.objects for tag in obj.categories})
        return {tag: tuple(obj.name for obj in self.objects if tag in obj.categories) for tag in tags}

    @cached_property
    def synonyms(self) -> dict[str, str]:
        """Names of objects by synonym."""
        return {tag: obj.name for obj in self.objects for tag in obj.synonyms}

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Names of the other objects of its subgroup."""
        subgroup = self.objects[self.names.index(name)].subgroup
        return tuple(obj.name for obj in self.objects if obj.subgroup == subgroup and obj.name != name)

    def sprite(self, style: str, name: str) -> np.ndarray:
        """(SIDE, SIDE, 4) uint8."""
        return self.sprites[self.styles.index(style), self.names.index(name)]


def make(directory: Path, count: int, styles: Sequence[Style] = STYLES) -> Artwork:
    """Choose `count` objects and render them in all styles.

    Args:
        directory: where the npm packages lie as `.tgz`.

    Raises:
        ArtworkError: a package is missing, of another version or damaged, there are not so many objects, or
            one has no picture.
    """
    entries, words = read_entries(directory)
    sets: dict[str, IconSet] = {}
    sources = []
    for style in styles:
        sets[style.name], source = read_icons(directory, style)
        sources.append(source)
    objects = choose(entries, sets, count)
    sprites = np.zeros((len(styles), count, SIDE, SIDE, 4), np.uint8)
    with tqdm(total=len(styles) * count, desc="rendering") as bar:
        for i, (style_name, icons) in enumerate(sets.items()):
            for j, obj in enumerate(objects):
                what = f"{obj.name} in {style_name} style"
                sprites[i, j] = render(icons.icons[obj.icons[style_name]], what)
                bar.update()
    return Artwork(tuple(sets), objects, (*sources, words), sprites)


def save(artwork: Artwork, file: Path) -> None:
    """Write the pack, complete or not at all; equal artwork gives equal bytes.

    Raises:
        OSError: the disk is full, for example.
    """
    index = {
        "format": FORMAT,
        "side": SIDE,
        "styles": artwork.styles,
        "objects": [asdict(obj) for obj in artwork.objects],
        "sources": [asdict(source) for source in artwork.sources],
    }

    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        listed = json.dumps(index, indent=1, ensure_ascii=False)
        archive.writestr(_member(INDEX), listed, zipfile.ZIP_DEFLATED, 9)
        archive.writestr(_member(CREDITS), credits(artwork.sources), zipfile.ZIP_DEFLATED, 9)
        for i, sprites in enumerate(artwork.sprites):
            archive.writestr(_member(f"{i}.png"), _png(sprites), zipfile.ZIP_STORED)

    write_bytes(make_directory(file.parent) / file.name, content.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, EPOCH)


def _png(sprites: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sprites.reshape(-1, SIDE, 4)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def load(file: Path) -> Artwork:
    """Read a pack.

    Raises:
        ArtworkError: it is missing, damaged, of another format, or lacks a picture.
    """
    again = "Make it again with `python -m benchmarks.worlds.artwork data`."
    try:
        with zipfile.ZipFile(file) as archive:
            index = json.loads(_read(archive, INDEX))
            if (index["format"], index["side"]) != (FORMAT, SIDE):
                raise ValueError("another version of this program made it")
            objects = tuple(_object(row) for row in index["objects"])
            pictures = [
                _sprites(_read(archive, f"{i}.png"), len(objects)) for i in range(len(index["styles"]))
            ]
            for names in (index["styles"], [obj.name for obj in objects]):
                if len(set(names)) != len(names):
                    raise ValueError("it names something twice")
            sources = tuple(_source(row) for row in index["sources"])
            artwork = Artwork(tuple(map(text, index["styles"])), objects, sources, np.stack(pictures))
    except FileNotFoundError:
        raise ArtworkError(f"There is no {file}. {again}") from None
    except (
        *(OSError, zlib.error, zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, RecursionError),
        *(NotImplementedError, RuntimeError, AttributeError, SyntaxError),  # by zipfile and Pillow
    ) as error:
        raise ArtworkError(f"{file} cannot be read as a pack of artwork ({error}). {again}") from error
    blank = np.argwhere((artwork.sprites[..., 3] < FAINT).all((2, 3)))
    if len(blank):
        style, name = artwork.styles[blank[0][0]], artwork.names[blank[0][1]]
        raise ArtworkError(f"{file} has no picture of {name} in {style} style. {again}")
    return artwork


def _object(row: dict[str, Any]) -> ArtObject:
    synonyms, categories = (tuple(map(text, row[key])) for key in ("synonyms", "categories"))
    name, group, subgroup, hexcode = (text(row[key]) for key in ("name", "group", "subgroup", "hexcode"))
    icons = {text(style): text(icon) for style, icon in row["icons"].items()}
    return ArtObject(name, synonyms, categories, group, subgroup, hexcode, icons)


def _source(row: dict[str, Any]) -> Source:
    return Source(**{key: value if value in (None, "") else text(value) for key, value in row.items()})


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is too large")
    return archive.read(name)


def _sprites(png: bytes, count: int) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if image.size != (SIDE, SIDE * count) or image.mode != "RGBA":
            raise ValueError(f"a style's pictures are {image.width}x{image.height} {image.mode}")
        return np.asarray(image).reshape(count, SIDE, SIDE, 4)
