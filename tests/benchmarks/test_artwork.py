"""The artwork: from npm packages to objects with names, sprites, one file, scenes and captions."""

from __future__ import annotations

import errno
import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.worlds.artwork import __main__ as command
from benchmarks.worlds.artwork import objects as rule
from benchmarks.worlds.artwork import pack, packages, scenes
from benchmarks.worlds.artwork.objects import ArtObject, choose, share_out
from benchmarks.worlds.artwork.pack import Artwork, load, make, save
from benchmarks.worlds.artwork.packages import (
    NAMES,
    STYLES,
    ArtworkError,
    Entry,
    Icon,
    IconSet,
    Package,
    Source,
    credits,
    read_entries,
    read_icons,
    read_package,
)
from benchmarks.worlds.artwork.render import SIDE, render
from benchmarks.worlds.artwork.sheets import contact_sheet, scene_sheet

EMOJI = {
    "animal-mammal": {
        "cat face": "animal, cat, face, kitten",
        "cat": "animal, animals, cats, kitten, pet",
        "dog": "animal, dogs, pet",
        "lion": "animal, mane",
        "leopard": "animal, cat",
        "camel": "animal, hump, sleeping, dangerous",
        "elephant": "animal, trunk",
        "goat": "animal, farm",
    },
    "animal-bird": {
        "bird": "animal",
        "chicken": "animal, bird, ornithology, farm",
        "rooster": "animal, bird, ornithology, farm",
        "duck": "animal, bird, ornithology, farm",
        "dove": "animal, bird, ornithology, peace",
        "penguin": "animal, bird, ornithology",
        "turkey": "animal, bird, ornithology, gobble",
    },
    "food-fruit": {
        "grapes": "fruit",
        "pear": "fruit",
        "green apple": "fruit",
        "lemon": "fruit, yellow",
        "melon": "fruit, cantaloupe",
        "peach": "fruit",
        "banana": "fruit, farm",
        "red apple": "fruit",
        "cherry": "1, 2, 3, 4, 5, 6, fruit, cherrystone",
    },
    "time": {"watch": "clock", "stopwatch": "clock", "sundial": "clock"},
    "tool": {"hammer": "tool", "wrench": "tool, spanner"},
    "face-smiling": {"grin": "face"},
}
"""Tags by name, by subgroup: CLDR in small."""
GROUP = {"animal": "animals-nature", "food": "food-drink", "face": "smileys-emotion", "tool": "objects"}
CHOSEN = [
    "cat",
    "dog",
    "lion",
    "camel",
    "goat",
    "chicken",
    "rooster",
    "duck",
    "dove",
    "penguin",
    "turkey",
    "pear",
    "lemon",
    "melon",
    "peach",
    "banana",
]
NAMED = [name for emoji in EMOJI.values() for name in emoji]
SETS = STYLES[:2]
"""The first says which code point is what, the second goes by names."""


def slug(name: str) -> str:
    return name.replace(" ", "-")


def code(name: str) -> str:
    return f"1F{NAMED.index(name):03X}"


def body(number: int) -> str:
    """A shape whose outline and colour go by a number."""
    return f'<path fill="#{40 + 5 * number:02x}4080" d="M1 1 L{20 + number} 3 L9 30 Z"/>'


def cldr() -> dict[str, Any]:
    """The members of the package of names."""
    subgroups = list(EMOJI)
    groups = ["smileys-emotion", "animals-nature", "food-drink", "objects"]
    rows = [
        {
            "label": name,
            "hexcode": code(name),
            "tags": tags.split(", "),
            "group": groups.index(GROUP.get(subgroup.split("-")[0], "objects")),
            "subgroup": subgroups.index(subgroup),
            "order": NAMED.index(name),
        }
        for subgroup, emoji in EMOJI.items()
        for name, tags in emoji.items()
    ]
    about = {
        "name": NAMES.name,
        "version": NAMES.version,
        "author": "A Collector",
        "license": "MIT",
        "repository": {"url": "git@host:a/b.git"},
    }
    named = {"groups": dict(enumerate(groups)), "subgroups": dict(enumerate(subgroups))}
    return {"package.json": about, "en/data.json": rows[::-1], "meta/groups.json": named}


def icons(number: int) -> dict[str, Any]:
    """The members of the package of style `number`."""
    style = STYLES[number]
    return {
        "package.json": {"name": style.package.name, "version": style.package.version},
        "icons.json": {
            "icons": {slug(name): {"body": body(number + i)} for i, name in enumerate(NAMED)},
            "width": 32,
            "height": 32,
        },
        "chars.json": {} if number % 2 else {code(name).lower(): slug(name) for name in NAMED},
        "info.json": {
            "name": f"Set {number}",
            "author": {"name": f"Author {number}", "url": "https://example.org/a"},
            "license": {"spdx": "CC-BY-4.0", "url": "https://example.org/l"},
        },
    }


def write_package(directory: Path, package: Package, members: dict[str, Any]) -> Path:
    """As `npm pack` writes it."""
    with tarfile.open(directory / package.file, "w:gz") as archive:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return directory / package.file


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages that are needed, in small."""
    made = tmp_path_factory.mktemp("packages")
    write_package(made, NAMES, cldr())
    for number, style in enumerate(STYLES):
        write_package(made, style.package, icons(number))
    return made


@pytest.fixture(scope="module")
def artwork(directory: Path) -> Artwork:
    return make(directory, 16, SETS)


@pytest.fixture(scope="module")
def packed(artwork: Artwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pack") / "pack.zip"
    save(artwork, file)
    return file


def entries_and_sets(directory: Path) -> tuple[list[Entry], dict[str, IconSet]]:
    return read_entries(directory)[0], {style.name: read_icons(directory, style)[0] for style in SETS}


# --- packages ---------------------------------------------------------------------------------------------


def test_no_style_is_the_beginning_of_another() -> None:
    names = [style.name for style in STYLES]
    assert len(names) == 8 == len({style.package.name for style in STYLES})
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


def test_drawings_and_authors_are_read(directory: Path) -> None:
    found, source = read_icons(directory, STYLES[0])
    assert found.icons["cat"] == Icon(body(NAMED.index("cat")), 0, 0, 32, 32)
    assert found.by_code[code("cat").lower()] == "cat"
    assert source == Source(
        *("Noto", "@iconify-json/noto", STYLES[0].package.version, "Set 0", "Author 0"),
        *("https://example.org/a", "CC-BY-4.0", "https://example.org/l"),
    )
    entries, _ = read_entries(directory)
    assert [entry.name for entry in entries] == NAMED
    cat = Entry(
        "cat", code("cat"), ("animal", "animals", "cats", "kitten", "pet"), "animals-nature", "animal-mammal"
    )
    assert entries[1] == cat


def test_a_missing_package_is_named_with_its_command(tmp_path: Path) -> None:
    package = Package("@scope/some", "1.2.3")
    with pytest.raises(ArtworkError) as found:
        read_package(tmp_path, package, [])
    assert f"npm pack @scope/some@1.2.3 --pack-destination {tmp_path}" in str(found.value)
    assert "only" not in str(found.value)


def test_another_version_is_refused(tmp_path: Path) -> None:
    package, older = Package("some", "1.2.3"), Package("some", "1.2.2")
    write_package(tmp_path, older, {"package.json": {"name": "some", "version": "1.2.2"}})
    with pytest.raises(ArtworkError, match=r"only some-1\.2\.2\.tgz.*npm pack some@1\.2\.3"):
        read_package(tmp_path, package, [])
    (tmp_path / older.file).rename(tmp_path / package.file)
    with pytest.raises(ArtworkError, match=r"version 1\.2\.2, not some at 1\.2\.3.*npm pack some@1\.2\.3"):
        read_package(tmp_path, package, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no archive"),
        lambda file: file.write_bytes(file.read_bytes()[:-200]),
        lambda file: file.write_bytes(file.read_bytes()[:40]),
        lambda file: write_package(file.parent, Package("some", "1.2.3"), {"package.json": b"{"}),
        lambda file: write_package(file.parent, Package("some", "1.2.3"), {"package.json": b"[" * 10**5}),
        lambda file: write_package(file.parent, Package("some", "1.2.3"), {"package.json": []}),
        lambda file: write_package(file.parent, Package("some", "1.2.3"), {"other.json": {}}),
    ],
    ids=["no archive", "cut off", "a header only", "no JSON", "deep JSON", "a list", "without package.json"],
)
def test_a_damaged_package_is_one_sentence(tmp_path: Path, damage) -> None:
    package = Package("some", "1.2.3")
    noise = np.random.default_rng(0).bytes(5000)
    about = {"name": "some", "version": "1.2.3"}
    file = write_package(tmp_path, package, {"noise": noise, "package.json": about, "data.json": list(noise)})
    assert read_package(tmp_path, package, ["data.json"]) == [list(noise)]
    damage(file)
    with pytest.raises(ArtworkError, match=r"npm pack some@1\.2\.3") as found:
        read_package(tmp_path, package, ["data.json"])
    assert "\n" not in str(found.value)


def test_members_that_are_too_large_or_no_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package("some", "1.2.3")
    file = write_package(tmp_path, package, {"package.json": {"name": "some", "version": "1.2.3"}})
    monkeypatch.setattr(packages, "LARGEST_MEMBER", 10)
    with pytest.raises(ArtworkError, match="no plain file of at most 10 bytes"):
        read_package(tmp_path, package, [])
    with tarfile.open(file, "w:gz") as archive:
        link = tarfile.TarInfo("package/package.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ArtworkError, match="no plain file"):
        read_package(tmp_path, package, [])


def test_share_alike_is_refused(tmp_path: Path) -> None:
    members = icons(0)
    members["info.json"]["license"]["spdx"] = "CC-BY-SA-4.0"
    write_package(tmp_path, STYLES[0].package, members)
    with pytest.raises(ArtworkError, match=r"is under CC-BY-SA-4\.0"):
        read_icons(tmp_path, STYLES[0])


@pytest.mark.parametrize("lost", ["icons.json", "chars.json", "info.json"])
def test_a_package_of_another_shape_is_one_sentence(tmp_path: Path, lost: str) -> None:
    wrong: list[Any] = [[1], {"nothing": 1}] if lost != "chars.json" else [[1]]
    for value in wrong:
        write_package(tmp_path, STYLES[0].package, icons(0) | {lost: value})
        with pytest.raises(ArtworkError):
            read_icons(tmp_path, STYLES[0])


def test_credits_name_everyone(artwork: Artwork) -> None:
    text = credits(artwork.sources)
    for source in artwork.sources:
        assert all(part in text for part in (source.title, source.author, source.licence, source.package))
    assert "Copyright (c) A Collector" in text and "Permission is hereby granted" in text
    assert "Permission" not in credits(artwork.sources[:1])


# --- objects ----------------------------------------------------------------------------------------------


def test_the_rule_chooses(artwork: Artwork) -> None:
    assert list(artwork.names) == CHOSEN
    assert artwork.categories == {
        "animal": tuple(CHOSEN[:11]),
        "bird": tuple(CHOSEN[5:11]),
    }
    assert artwork.synonyms == {
        "kitten": "cat",
        "mane": "lion",
        "hump": "camel",
        "peace": "dove",
        "gobble": "turkey",
        "cantaloupe": "melon",
    }
    assert all(len(artwork.neighbours(name)) >= 2 for name in artwork.names)
    assert artwork.neighbours("pear") == ("lemon", "melon", "peach", "banana")


def test_two_words_stand_back(directory: Path) -> None:
    entries, sets = entries_and_sets(directory)
    names = [obj.name for obj in choose(entries, sets, 18)]
    assert set(names) - set(CHOSEN) == {"green apple", "cherry"}


def test_names_and_words_of_the_rule() -> None:
    plain = ["cat", "soccer ball", "glass", "bus", "ring", "bed"]
    other = ["ant", "Tokyo tower", "man’s shoe", "three word name", "grapes", "locked", "bowling", "t-shirt"]
    assert [rule.is_plain(name) for name in plain + other] == [True] * len(plain) + [False] * len(other)


def test_too_many_objects_are_refused(directory: Path) -> None:
    entries, sets = entries_and_sets(directory)
    for count in (1, 2, 40):
        with pytest.raises(
            ArtworkError, match=f"^{count} objects cannot be chosen: all of Noto, Blob draw 18"
        ):
            choose(entries, sets, count)


def test_shares_are_of_neighbours() -> None:
    for sizes in ([9, 8, 7, 3], [3, 3, 3], [20, 4]):
        for count in range(sum(sizes) + 2):
            shares = share_out(sizes, count)
            if shares is not None:
                assert sum(shares) == count
                assert all(
                    3 <= share <= size or share == 0 for share, size in zip(shares, sizes, strict=True)
                )
    assert share_out([9, 8, 7, 3], 16) == [6, 5, 5, 0] and share_out([9, 8], 17) == [9, 8]
    assert share_out([3, 3], 5) is None and share_out([9], 10) is None and share_out([9], 2) is None


def test_code_points_win_over_names_and_aliases_are_followed() -> None:
    drawn = Icon("", 0, 0, 1, 1)
    coded = IconSet({"cat2": drawn, "cat": drawn}, {"kitty": "cat2"}, {"1f408-fe0f": "kitty", "1f408": "cat"})
    named = IconSet({"cat2": drawn, "big-cat": drawn}, {"cat-2": "big-cat"}, {})
    entry = Entry("cat 2", "1F408-FE0F", (), "animals-nature", "animal-mammal")
    found = rule.find_icons(entry, {"coded": coded, "named": named})
    assert found is not None and found.icons == {"coded": "cat2", "named": "big-cat"}
    other = replace(entry, name="dog", hexcode="1F415")
    assert rule.find_icons(other, {"coded": coded, "named": named}) is None


def test_an_object_that_a_style_lacks_is_not_chosen(directory: Path) -> None:
    entries, sets = entries_and_sets(directory)
    blob = sets["Blob"]
    sets["Blob"] = IconSet({name: icon for name, icon in blob.icons.items() if name != "lion"}, {}, {})
    names = [obj.name for obj in choose(entries, sets, 16)]
    assert "lion" not in names and len(names) == 16


def test_aliases_that_mirror_are_left_out(tmp_path: Path) -> None:
    members = icons(0)
    members["icons.json"]["aliases"] = {"kitty": {"parent": "cat"}, "tac": {"parent": "cat", "hFlip": True}}
    write_package(tmp_path, STYLES[0].package, members)
    assert read_icons(tmp_path, STYLES[0])[0].aliases == {"kitty": "cat"}


# --- sprites ----------------------------------------------------------------------------------------------


def svg(text: str) -> Icon:
    return Icon(text, 0, 0, 8, 8)


def test_a_drawing_fills_its_sprite() -> None:
    sprite = render(svg('<rect x="2" y="3" width="4" height="2" fill="currentColor"/>'), "a bar")
    assert sprite.shape == (SIDE, SIDE, 4) and sprite.dtype == np.uint8
    assert sprite[SIDE // 2, SIDE // 2].tolist() == [32, 32, 32, 255]
    drawn = sprite[..., 3] > 127
    assert drawn.any(axis=0).all() and drawn.any(axis=1).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("text", ["", "<defs/>", '<rect width="8" height="8" fill-opacity="0.01"/>'])
def test_an_icon_without_a_picture_is_named(text: str) -> None:
    with pytest.raises(ArtworkError, match="cat in Noto style has no picture"):
        render(svg(text), "cat in Noto style")


SQUARE = '<rect width="8" height="8"/>'
USE = '<g id="{}"><use href="#{}"/><use href="#{}"/></g>'


@pytest.mark.parametrize(
    "text",
    [
        '<image href="FILE" width="8" height="8"/>',
        '<s:image xmlns:s="http://www.w3.org/2000/svg" s:href="FILE"/>',
        '<feImage href="FILE"/>',
        "<style>@import 'FILE';</style>",
        "<text>a</text>",
        '<use xlink:href="FILE#a"/>',
        '<rect width="8" height="8" fill="url(FILE#a)"/>',
        '<rect width="8" height="8" style="fill:url( \'FILE\')"/>',
        "</svg><svg>",
        "<g>",
        "<!DOCTYPE a>",
        "&unknown;",
        f'<g id="a">{SQUARE}</g>' + USE.format("b", "a", "a") + USE.format("c", "b", "b"),
        "<g>" * 100 + SQUARE + "</g>" * 100,
        " " * 2**20,
    ],
)
def test_other_peoples_svg_is_not_followed(tmp_path: Path, text: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    with pytest.raises(ArtworkError, match=r"^it is not drawn: ") as found:
        render(svg(SQUARE + text.replace("FILE", str(tmp_path / "a.png"))), "it")
    assert "\n" not in str(found.value) and len(str(found.value)) < 200


def test_parts_of_the_same_drawing_are_used() -> None:
    text = (
        f'<defs><g id="a">{SQUARE}</g><linearGradient id="b"><stop stop-color="#f00"/></linearGradient></defs>'
        '<g fill="url(#b)"><use xlink:href="#a"/></g>'
    )
    assert render(svg(text), "it")[SIDE // 2, SIDE // 2].tolist() == [255, 0, 0, 255]


def test_without_the_renderer_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(ArtworkError, match="pip install resvg-py"):
        render(svg(SQUARE), "it")


# --- the pack ---------------------------------------------------------------------------------------------


def test_a_pack_is_read_as_it_was_written(artwork: Artwork, packed: Path, tmp_path: Path) -> None:
    found = load(packed)
    assert (found.styles, found.objects, found.sources) == (artwork.styles, artwork.objects, artwork.sources)
    assert np.array_equal(found.sprites, artwork.sprites) and found.sprites.shape == (2, 16, SIDE, SIDE, 4)
    save(found, tmp_path / "new" / "again.zip")
    assert (tmp_path / "new" / "again.zip").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        assert archive.read(pack.CREDITS).decode() == credits(artwork.sources)


def test_each_object_has_its_own_sprite(artwork: Artwork) -> None:
    assert np.array_equal(artwork.sprite("Blob", "dog"), artwork.sprites[1, 1])
    expected = render(Icon(body(NAMED.index("dog") + 1), 0, 0, 32, 32), "dog")
    assert np.array_equal(artwork.sprite("Blob", "dog"), expected)


def rewritten(packed: Path, file: Path, changes: dict[str, bytes | None]) -> Path:
    """A pack with other members; None leaves one out."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = changes.get(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return file


def index_of(packed: Path, **changes: Any) -> bytes:
    with zipfile.ZipFile(packed) as archive:
        return json.dumps(json.loads(archive.read(pack.INDEX)) | changes).encode()


def png(width: int, height: int, mode: str = "RGBA") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        lambda packed: {"1.png": None},
        lambda packed: {pack.INDEX: None},
        lambda packed: {pack.INDEX: b"{"},
        lambda packed: {pack.INDEX: b"[]"},
        lambda packed: {pack.INDEX: b"[" * 10**5},
        lambda packed: {pack.INDEX: index_of(packed, format=2)},
        lambda packed: {pack.INDEX: index_of(packed, side=SIDE + 1)},
        lambda packed: {pack.INDEX: index_of(packed, styles=[])},
        lambda packed: {pack.INDEX: index_of(packed, styles=["Noto"] * 3)},
        lambda packed: {pack.INDEX: index_of(packed, styles=["Noto", "Noto"])},
        lambda packed: {pack.INDEX: index_of(packed, objects=[])},
        lambda packed: {pack.INDEX: index_of(packed, objects=[{"name": "cat"}] * 16)},
        lambda packed: {pack.INDEX: index_of(packed, sources=[{}])},
        lambda packed: {"0.png": b"no picture"},
        lambda packed: {"0.png": png(SIDE, SIDE)},
        lambda packed: {"0.png": png(SIDE, 16 * SIDE, "RGB")},
        lambda packed: {"0.png": png(SIDE, 16 * SIDE)[:-30]},
    ],
)
def test_a_damaged_pack_is_one_sentence(packed: Path, tmp_path: Path, changes) -> None:
    file = rewritten(packed, tmp_path / "pack.zip", changes(packed))
    with pytest.raises(ArtworkError, match=r"cannot be read as a pack.*artwork data") as found:
        load(file)
    assert "\n" not in str(found.value)


def test_bytes_that_change_are_noticed(packed: Path, artwork: Artwork, tmp_path: Path) -> None:
    whole, rng = packed.read_bytes(), np.random.default_rng(0)
    file = tmp_path / "pack.zip"
    for place in rng.integers(len(whole), size=150):
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(data))
        try:
            found = load(file)
        except ArtworkError:
            continue
        assert found.objects == artwork.objects and np.array_equal(found.sprites, artwork.sprites)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ArtworkError):
            load(file)


def test_a_style_that_lacks_an_object_is_named(artwork: Artwork, tmp_path: Path) -> None:
    sprites = artwork.sprites.copy()
    sprites[1, 2] = 0
    save(replace(artwork, sprites=sprites), tmp_path / "pack.zip")
    with pytest.raises(ArtworkError, match="has no picture of lion in Blob style"):
        load(tmp_path / "pack.zip")


def test_no_pack_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtworkError, match=r"^There is no .*pack\.zip\. Make it"):
        load(tmp_path / "pack.zip")


# --- scenes -----------------------------------------------------------------------------------------------

CAPTION = re.compile(
    r"an? [a-z ]+?( and an? [a-z ]+)?(,| in) (Noto|Blob) style( on an? ([a-z]+) background)?"
)


def test_captions_say_what_scenes_show(artwork: Artwork) -> None:
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(1000):
        scene = scenes.compose(artwork, rng)
        text, (first, *second) = scene.caption, scene.objects
        kinds.add(scene.kind)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", text)
        assert set(scene.objects) <= set(artwork.names) and scene.style in artwork.styles
        assert bool(second) == (scene.kind == "pair")
        if scene.kind == "style":
            assert text == f"{scene.style} style"
            continue
        if scene.kind == "object":
            assert text == f"a {first}"
            continue
        found = CAPTION.fullmatch(text)
        assert found and found[3] == scene.style and found[5] == scene.background
        if scene.kind == "name":
            assert f"a {first} in " in text or f"a {first}, " in text
        elif scene.kind == "pair":
            assert text.startswith(f"a {first} and a {second[0]} in ") and first != second[0]
        elif scene.kind == "synonym":
            assert artwork.synonyms[re.match("an? (.+?) in ", text)[1]] == first
        else:
            assert first in artwork.categories[re.match("an? (.+?) in ", text)[1]]
    assert kinds == set(scenes.KINDS)


def test_a_category_draws_any_of_its_members(artwork: Artwork) -> None:
    rng = np.random.default_rng(0)
    drawn = {scenes.compose(artwork, rng, "category").objects[0] for _ in range(300)}
    assert drawn == set(artwork.categories["animal"])


def test_the_usual_prompt_is_the_usual_caption(artwork: Artwork) -> None:
    rng = np.random.default_rng(0)
    made = [scenes.compose(artwork, rng, "name") for _ in range(500)]
    usual = sum(s.caption == scenes.PROMPT.format(object=s.objects[0], style=s.style) for s in made)
    assert usual == pytest.approx(500 * 0.85 * 0.85, rel=0.15)
    assert sum(scenes.KINDS.values()) == pytest.approx(1)


def test_without_synonyms_and_categories_names_are_said(artwork: Artwork) -> None:
    bare = replace(artwork, objects=tuple(replace(o, synonyms=(), categories=()) for o in artwork.objects))
    for kind in ("synonym", "category"):
        assert scenes.compose(bare, np.random.default_rng(0), kind).kind == "name"


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_pictures_are_functions_of_the_generator(artwork: Artwork, kind: str) -> None:
    def made(seed: int) -> tuple[scenes.Scene, np.ndarray]:
        rng = np.random.default_rng(seed)
        scene = scenes.compose(artwork, rng, kind)
        return scene, scenes.draw(artwork, scene, rng)

    for seed in range(20):
        (scene, picture), (again, same) = made(seed), made(seed)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert scene == again and np.array_equal(picture, same)
    assert not np.array_equal(made(0)[1], made(1)[1])


def solid(artwork: Artwork) -> Artwork:
    """The same with squares for sprites: red in the first style, all others blue."""
    sprites = np.zeros_like(artwork.sprites)
    sprites[..., 3] = 255
    sprites[:, 0, ..., 0] = 255
    sprites[:, 1:, ..., 2] = 255
    return replace(artwork, sprites=sprites)


def test_objects_lie_inside_and_vary(artwork: Artwork) -> None:
    squares, boxes = solid(artwork), set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = scenes.Scene("name", "Noto", ("cat",), "white", "")
        drawn = (scenes.draw(squares, scene, rng) != 255).any(axis=2)
        assert not drawn[[0, -1]].any() and not drawn[:, [0, -1]].any()
        height, width = (drawn.any(axis=axis).sum() for axis in (1, 0))
        top, left = np.argwhere(drawn)[0] - scenes.MARGIN
        assert height == width and width + 2 * scenes.MARGIN in scenes.ONE
        assert top % scenes.CELL == left % scenes.CELL == 0
        boxes.add((int(top), int(left), int(width)))
    assert len(boxes) == 3 * 3 + 2 * 2  # all places of both sizes


def test_two_objects_stand_left_and_right(artwork: Artwork) -> None:
    squares = solid(artwork)
    for seed in range(100):
        scene = scenes.Scene("pair", "Noto", ("cat", "dog"), "white", "")
        picture = scenes.draw(squares, scene, np.random.default_rng(seed))
        red, blue = ((picture == colour).all(axis=2) for colour in ([255, 0, 0], [0, 0, 255]))
        assert np.argwhere(red)[:, 1].mean() < 32 < np.argwhere(blue)[:, 1].mean()
        assert blue.sum() == red.sum() == (scenes.TWO[0] - 2 * scenes.MARGIN) ** 2
        assert not (red | blue)[[0, -1]].any() and not (red | blue)[:, [0, -1]].any()


def test_named_backgrounds_have_their_colour(artwork: Artwork) -> None:
    for name, colour in scenes.BACKGROUNDS.items():
        corners = [
            scenes.draw(artwork, scenes.Scene("name", "Noto", ("cat",), name, ""), np.random.default_rng(i))[
                0, 0
            ]
            for i in range(20)
        ]
        off = np.abs(np.array(corners, int) - colour).max()
        assert off == 0 if name == "white" else 0 < off <= scenes.LIGHTNESS + scenes.TINT + 1


def test_open_backgrounds_are_white_half_the_time(artwork: Artwork) -> None:
    scene = scenes.Scene("name", "Noto", ("cat",), None, "")
    pictures = [scenes.draw(artwork, scene, np.random.default_rng(i)) for i in range(300)]
    white = sum((p[0] == 255).all() and (p[-1] == 255).all() for p in pictures)
    graded = sum(not (p[0, 0] == p[-1, -1]).all() or not (p[0, -1] == p[-1, 0]).all() for p in pictures)
    assert white == pytest.approx(150, abs=30) and graded == pytest.approx(75, abs=25)


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_makes_everything(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "data",
        "--packages",
        str(directory),
        "--pack",
        str(tmp_path / "new" / "art.zip"),
        "--objects",
        "16",
    ]
    command.main(command.parse_config(line))
    said = capsys.readouterr().out
    assert "animal-mammal: cat (kitten), dog, lion (mane)" in said and "bird (6): chicken" in said
    made = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert made == ["CREDITS.md", "art.zip", "art_objects.png", "art_scenes.png"]
    found = load(tmp_path / "new" / "art.zip")
    assert found.styles == tuple(style.name for style in STYLES)
    assert contact_sheet(found).width > 16 * 64 and scene_sheet(found, 1, 2).width < 300
    assert all(style.package.command(Path("DIR")) in command.COMMANDS["data"].description for style in STYLES)


def test_a_user_error_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(command.parse_config(["data", "--packages", str(tmp_path)]))
    assert ended.value.code == 2
    assert f"npm pack {NAMES.name}@{NAMES.version}" in capsys.readouterr().err


def test_a_full_disk_keeps_the_old_pack(
    artwork: Artwork, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pack.zip"
    file.write_bytes(packed.read_bytes())

    def fail(*args: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="No space left"):
        save(artwork, file)
    assert file.read_bytes() == packed.read_bytes()


def test_objects_know_their_drawings(artwork: Artwork) -> None:
    assert artwork.objects[0] == ArtObject(
        "cat",
        ("kitten",),
        ("animal",),
        "animals-nature",
        "animal-mammal",
        code("cat"),
        {"Noto": "cat", "Blob": "cat"},
    )
