"""Packages of drawings, drawings and packs, whoever made them: read, or refused in a sentence."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import anything, changed, damaged, fuzz, put, refused_or_read
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.worlds.artwork.objects import ArtObject, choose
from benchmarks.worlds.artwork.pack import INDEX, Artwork, load, save
from benchmarks.worlds.artwork.packages import (
    NAMES,
    STYLES,
    Icon,
    Source,
    credits,
    read_entries,
    read_icons,
)
from benchmarks.worlds.artwork.render import SIDE, render
from benchmarks.worlds.artwork.scenes import compose, draw

ANIMALS = ["cat", "dog", "goat", "pig", "cow", "ram"]
SQUARE = '<path fill="#f00" d="M0 0 L9 0 L9 9 Z"/>'
DRAWING = (
    '<defs><clipPath id="a"><path d="M0 0 L9 0 L9 9 Z"/></clipPath><linearGradient id="b"><stop stop-color="red"/>'
    f'</linearGradient></defs><g clip-path="url(#a)" fill="url(#b)" transform="scale(2)">{SQUARE}</g>'
    '<filter id="c"><feGaussianBlur stdDeviation="1"/></filter><use href="#a" filter="url(#c)"/>'
)
DRAWN = {
    "package.json": {"name": STYLES[0].package.name, "version": STYLES[0].package.version},
    "icons.json": {
        "icons": {name: {"body": SQUARE, "left": 1} for name in ANIMALS},
        "aliases": {"kitty": {"parent": "cat"}, "tac": {"parent": "cat", "hFlip": True}},
        "width": 32,
        "height": 32,
    },
    "chars.json": {f"1f40{i}": name for i, name in enumerate(ANIMALS)},
    "info.json": {
        "name": "Set",
        "author": {"name": "Someone", "url": "https://example.org"},
        "license": {"spdx": "MIT", "url": "https://example.org"},
    },
}
NAMED = {
    "package.json": {
        "name": NAMES.name,
        "version": NAMES.version,
        "author": "Someone",
        "license": "MIT",
        "repository": {"url": "git@host:a/b.git"},
    },
    "en/data.json": [
        {
            "label": name,
            "hexcode": f"1F40{i}",
            "tags": ["animal", name * 2],
            "group": 3,
            "subgroup": 4,
            "order": i,
        }
        for i, name in enumerate(ANIMALS)
    ],
    "meta/groups.json": {"groups": {"3": "animals-nature"}, "subgroups": {"4": "animal-mammal"}},
}


def tgz(members: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, value in members.items():
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def pack(folder: Path) -> Path:
    objects = tuple(
        ArtObject(n, (n * 2,), ("animal",), "animals-nature", "animal-mammal", "1F400", {}) for n in ANIMALS
    )
    sprites = np.random.default_rng(0).integers(0, 256, (1, 6, SIDE, SIDE, 4)).astype(np.uint8)
    sprites[..., :3] = 0
    save(Artwork(("Noto",), objects, (Source(*("text",) * 8),), sprites), folder / "valid.zip")
    return folder / "valid.zip"


def read_all(folder: Path) -> str:
    entries, words = read_entries(folder)
    icons, source = read_icons(folder, STYLES[0])
    for obj in choose(entries, {"Noto": icons}, 3):
        assert render(icons.icons[obj.icons["Noto"]], obj.name).shape == (SIDE, SIDE, 4)
    return credits([source, words])


def look(file: Path) -> np.ndarray:
    artwork = load(file)
    rng = np.random.default_rng(0)
    for kind in ("name", "synonym", "category"):
        picture = draw(artwork, compose(artwork, rng, kind), rng)
    return picture


@given(named=changed(NAMED), drawn=changed(DRAWN), whole=st.sampled_from([0, 1, 2]))
@fuzz(300)
def test_packages(folder: Path, named: Any, drawn: Any, whole: int) -> None:
    for package, value, valid in ((NAMES, named, NAMED), (STYLES[0].package, drawn, DRAWN)):
        put(folder / package.file, tgz(valid if whole == (package is NAMES) else value))
    refused_or_read("packages of artwork", read_all, folder)


@given(content=damaged(tgz(NAMED)))
@fuzz(200)
def test_damaged_packages(folder: Path, content: bytes) -> None:
    put(folder / NAMES.file, content)
    refused_or_read("packages of artwork", read_entries, folder)


@given(body=damaged(DRAWING.encode()))
@fuzz(300)
def test_drawings(body: bytes) -> None:
    refused_or_read("drawings", render, Icon(body.decode(errors="replace"), 0, 0, 32, 32), "a cat")


@given(box=st.lists(st.floats(), min_size=4, max_size=4))
@fuzz(100)
def test_view_boxes(box: list[float]) -> None:
    refused_or_read("drawings", render, Icon(DRAWING, *box), "a cat")


@given(data=st.data())
@fuzz(300)
def test_packs(folder: Path, pack: Path, data: st.DataObject) -> None:
    with zipfile.ZipFile(pack) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(members[INDEX])
    members[INDEX] = json.dumps(data.draw(changed(index) | anything())).encode()
    with zipfile.ZipFile(folder / "pack.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused_or_read("packs of artwork", look, folder / "pack.zip")


@given(data=st.data())
@fuzz(200)
def test_damaged_packs(folder: Path, pack: Path, data: st.DataObject) -> None:
    put(folder / "pack.zip", data.draw(damaged(pack.read_bytes())))
    refused_or_read("packs of artwork", look, folder / "pack.zip")
