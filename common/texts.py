"""Users' text files, in whatever encoding and with whatever line breaks their editors write, and what makes
two texts the same."""

from __future__ import annotations

import codecs
import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

import yaml

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before UTF-16, whose mark is the beginning of this one.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encoding by the mark that a file begins with; without one it is UTF-8."""

MOST = 64 * 2**20
"""Bytes of a text file; what is longer is no text that anybody has written, and a device never ends."""


def read_text(path: str | Path, kind: str) -> str:
    """The text of a user's file, without a byte-order mark; lines end with a line feed alone.

    Args:
        kind: what it is, for the error, such as "prompt file".

    Raises:
        ValueError: it cannot be read, is longer than a text can be, or is in no encoding that can be told.
    """
    try:
        content = _read_in_bounds(path)
    except OSError as error:
        raise ValueError(f"The {kind} {path} cannot be read: {error.strerror}.") from error
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The {kind} {path} cannot be read: byte {error.start} is no {encoding.upper()}; save it as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"The {kind} {path} cannot be read: it is no UTF-8 text; save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_in_bounds(path: str | Path) -> bytes:
    """
    Raises:
        OSError: it is neither a file nor a pipe, or has too many bytes.
    """
    with Path(path).open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "it is neither a file nor a pipe")
        content = file.read(MOST + 1)
    if len(content) > MOST:
        raise OSError(errno.EFBIG, f"it has more than {MOST // 2**20} MB, so it is no text")
    return content


def lines_of(text: str) -> list[str]:
    """The lines of `read_text`. `str.splitlines` also breaks at separators that belong to a text, such as
    those that a word processor leaves."""
    return text.split("\n")


def folded(text: str) -> str:
    """What texts that read the same have in common: one Unicode form, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON and command lines can hold half of a character, which no
    tokenizer accepts."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_seen(text: str) -> bool:
    """Whether it has a character that is neither space nor invisible."""
    return any(unicodedata.category(char)[0] not in "CZ" for char in text)


def load_yaml(text: str) -> Any:
    """What YAML says, plain values only.

    Raises:
        yaml.YAMLError: it is no YAML, or a mapping has a key twice.
    """
    loader = _OnceLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _OnceLoader(yaml.SafeLoader):
    """Of a key that stands twice PyYAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
