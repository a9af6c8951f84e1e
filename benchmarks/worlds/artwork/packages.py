"""Where the drawings come from: pinned npm packages of open-licensed emoji sets, read as they are packed.

`npm pack NAME@VERSION` writes a package as one `.tgz`. The members that are needed are read from it in memory
and nothing is extracted. Sets under CC BY-SA are left out: weights made of them could only be shared alike.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

LARGEST_MEMBER = 2**27
"""Bytes; the largest that is needed has 104 million."""
LICENCES = ("Apache-2.0", "MIT", "CC-BY-4.0")


class ArtworkError(ValueError):
    """The artwork cannot be had; the message is one sentence for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines())[:2000])


@dataclass(frozen=True)
class Package:
    """An npm package at the version that everything here was looked at with."""

    name: str
    version: str

    @property
    def file(self) -> str:
        """What `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def command(self, directory: Path) -> str:
        """What puts it into a directory."""
        return f"npm pack {self.name}@{self.version} --pack-destination {directory}"


@dataclass(frozen=True)
class Style:
    """One set of drawings: what captions call it, and its package."""

    name: str
    package: Package


STYLES = (
    Style("Noto", Package("@iconify-json/noto", "1.2.9")),
    Style("Blob", Package("@iconify-json/noto-v1", "1.2.5")),
    Style("Fluent 3D", Package("@iconify-json/fluent-emoji", "1.2.7")),
    Style("Fluent Flat", Package("@iconify-json/fluent-emoji-flat", "1.2.6")),
    Style("High Contrast", Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6")),
    Style("Twemoji", Package("@iconify-json/twemoji", "1.2.5")),
    Style("EmojiOne", Package("@iconify-json/emojione", "1.2.3")),
    Style("Monotone", Package("@iconify-json/emojione-monotone", "1.2.1")),
)
"""No name begins another, so that a prompt that names a style names one."""
NAMES = Package("emojibase-data", "17.0.0")
"""Names, synonyms and categories, which are Unicode's CLDR."""


@dataclass(frozen=True)
class Icon:
    """A drawing: the inside of an `<svg>` and its view box."""

    body: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class IconSet:
    """All drawings of a style.

    Attributes:
        icons: by name.
        aliases: other names -> names.
        by_code: code points ("1f408", "2708-fe0f") -> names; empty for sets that do not say.
    """

    icons: Mapping[str, Icon]
    aliases: Mapping[str, str]
    by_code: Mapping[str, str]

    def find(self, names: Sequence[str]) -> str | None:
        """The first of the names that there is a drawing of, aliases resolved."""
        for name in names:
            for _ in range(4):
                name = self.aliases.get(name, name)
            if name in self.icons:
                return name
        return None


@dataclass(frozen=True)
class Source:
    """Whose drawings, or words, a package holds."""

    style: str | None
    package: str
    version: str
    title: str
    author: str
    author_url: str
    licence: str
    licence_url: str


def read_package(directory: Path, package: Package, members: Sequence[str]) -> list[Any]:
    """JSON members of a package.

    Raises:
        ArtworkError: the package is missing, of another version, damaged, or lacks a member; the message has
            the command that gets it.
    """
    file = directory / package.file
    hint = f"Get it with `{package.command(directory)}`."
    try:
        with tarfile.open(file, "r:gz") as archive:
            found = _read_members(archive, {"package.json", *members})
    except FileNotFoundError:
        stem = package.file.removesuffix(f"{package.version}.tgz")
        others = sorted(path.name for path in directory.glob(f"{stem}[0-9]*.tgz"))
        instead = f", only {', '.join(others)}" if others else ""
        raise ArtworkError(
            f"{package.name} at version {package.version} is missing: there is no {file}{instead}. {hint}"
        ) from None
    except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError, OSError) as error:
        raise ArtworkError(f"{file} cannot be read as an npm package ({error}). {hint}") from error
    about = found.get("package.json")
    said = (about.get("name"), about.get("version")) if isinstance(about, dict) else (None, None)
    if said != (package.name, package.version):
        raise ArtworkError(
            f"{file} says it is {said[0]} at version {said[1]}, not {package.name} at {package.version}. {hint}"
        )
    lacking = [name for name in members if name not in found]
    if lacking:
        raise ArtworkError(f"{file} has no {lacking[0]}. {hint}")
    return [found[name] for name in members]


def _read_members(archive: tarfile.TarFile, wanted: set[str]) -> dict[str, Any]:
    found = {}
    for member in archive:
        name = member.name.removeprefix("package/")
        if name not in wanted or name in found:
            continue
        stream = archive.extractfile(member) if member.isfile() else None
        if stream is None or member.size > LARGEST_MEMBER:
            raise ValueError(f"{name} is no plain file of at most {LARGEST_MEMBER} bytes")
        found[name] = json.loads(stream.read())
        if len(found) == len(wanted):
            break
    return found


def shaped(package: Package, read: Callable[[], Any]) -> Any:
    """What `read` makes of a package's JSON.

    Raises:
        ArtworkError: the JSON has not the fields or types that it should have.
    """
    try:
        return read()
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtworkError(f"{package.name} {package.version} is not as it should be ({error!r}).") from error


def text(value: Any) -> str:
    """What should be a text in a file that somebody else has written.

    Raises:
        TypeError: it is none, or it is empty.
    """
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def read_icons(directory: Path, style: Style) -> tuple[IconSet, Source]:
    """All drawings of a style, and whose they are.

    Raises:
        ArtworkError: as `read_package`, and where the set's licence is none of LICENCES.
    """
    package = style.package
    icons, chars, info = read_package(directory, package, ["icons.json", "chars.json", "info.json"])
    found: tuple[IconSet, Source] = shaped(package, partial(_icons, style, icons, chars, info))
    if found[1].licence not in LICENCES:
        raise ArtworkError(
            f"{package.name} is under {found[1].licence}: only {', '.join(LICENCES)} may be used here."
        )
    return found


def _icons(style: Style, icons: Any, chars: Any, info: Any) -> tuple[IconSet, Source]:
    """Aliases that also turn or mirror a drawing are left out: they show another thing."""
    usual = {"left": 0, "top": 0, "width": 16, "height": 16}
    usual |= {field: icons[field] for field in usual if field in icons}
    drawings = {
        name: Icon(text(icon["body"]), *(float(icon.get(field, usual[field])) for field in usual))
        for name, icon in icons["icons"].items()
    }
    aliases = {
        name: text(alias["parent"]) for name, alias in icons.get("aliases", {}).items() if len(alias) == 1
    }
    source = Source(
        style.name,
        style.package.name,
        style.package.version,
        text(info["name"]),
        text(info["author"]["name"]),
        text(info["author"]["url"]),
        text(info["license"]["spdx"]),
        text(info["license"]["url"]),
    )
    return IconSet(drawings, aliases, {code.lower(): text(name) for code, name in chars.items()}), source


@dataclass(frozen=True)
class Entry:
    """What CLDR says of one emoji."""

    name: str
    hexcode: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


def read_entries(directory: Path) -> tuple[list[Entry], Source]:
    """All emoji of a group, in CLDR's order, and whose words they are.

    Raises:
        ArtworkError: as `read_package`.
    """
    data, groups, about = read_package(directory, NAMES, ["en/data.json", "meta/groups.json", "package.json"])

    def entries() -> tuple[list[Entry], Source]:
        found = [
            Entry(
                text(row["label"]),
                text(row["hexcode"]),
                tuple(map(text, row.get("tags", ()))),
                text(groups["groups"][str(row["group"])]),
                text(groups["subgroups"][str(row["subgroup"])]),
            )
            for row in sorted(data, key=lambda row: row.get("order", len(data)))
            if "group" in row
        ]
        source = Source(
            None,
            NAMES.name,
            NAMES.version,
            "Emojibase, from Unicode's CLDR",
            text(about["author"]),
            text(about["repository"]["url"]).removeprefix("git@").replace(":", "/").removesuffix(".git"),
            text(about["license"]),
            "",
        )
        return found, source

    found: tuple[list[Entry], Source] = shaped(NAMES, entries)
    return found


MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of
the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
IN THE SOFTWARE."""
"""What copies under that licence must carry."""


def credits(sources: Sequence[Source]) -> str:
    """Markdown that names authors and licences, to lie beside whatever is made of the drawings."""
    lines = [
        "# Authors and licences of the artwork",
        "",
        "The pictures that these files hold, or were trained on, are made of drawings from the sets below, each "
        "under its own licence. The drawings were changed: rendered small, moved, mirrored, scaled and set on "
        "other backgrounds. Their authors have endorsed none of it. Names, synonyms and categories are those of "
        "Unicode's CLDR (copyright Unicode, Inc., Unicode License V3).",
        "",
        "| Style | Set | Author | Licence | Package |",
        "|---|---|---|---|---|",
    ]
    for s in sources:
        author = f"[{s.author}]({s.author_url})" if s.author_url.startswith("http") else s.author
        licence = f"[{s.licence}]({s.licence_url})" if s.licence_url.startswith("http") else s.licence
        row = (s.style or "(names)", s.title, author, licence, f"`{s.package}` {s.version}")
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |")
    holders = dict.fromkeys(f"Copyright (c) {s.author}" for s in sources if s.licence == "MIT")
    if holders:
        lines += ["", "The licence of those under MIT:", "", *(f"{holder}  " for holder in holders), "", MIT]
    return "\n".join([*lines, ""])
