"""JSON of others: bounded, and compared with the types that its reader relies on, before anything is made of
it.

A type is a `TypedDict`, `list`, `dict`, `Literal`, a union, or `Annotated` with what the value is in: a
`common.flags.Range` of numbers, or a rule of those below.
A key that a `TypedDict` does not know is left alone, one that may be missing may also be null.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from common.texts import is_text

LARGEST_FILE = 64 * 2**20
"""Bytes."""
DEEPEST, LONGEST, LARGEST = 24, 20_000, 1e100
"""Of a value: how deep lists and objects may lie in one another, characters of a text, size of a number."""
SHOWN = 60
"""Characters of a place, or a value, that an error repeats."""


class NotJson(ValueError):
    """A text that is no JSON."""


class Misfit(ValueError):
    """A value that is not of its type; the message is a place in it and what should be there."""


@dataclass(frozen=True)
class Length:
    """How many values a list or an object has: as many, or from as many to `most`."""

    count: int
    most: int | None = None

    def __str__(self) -> str:
        return f"of {self.count}{f' to {self.most}' if self.most else ''} values"

    def __contains__(self, value: list[Any] | dict[str, Any]) -> bool:
        return self.count <= len(value) <= (self.most or self.count)


@dataclass(frozen=True)
class Spelt:
    """A text's pattern, and what to call it."""

    pattern: str
    what: str

    def __str__(self) -> str:
        return f"that is {self.what}"

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.ASCII) is not None


def read_json(path: Path) -> Any:
    """The value in a file; None if there is no file.

    Raises:
        ValueError: it cannot be read, or is no JSON within bounds.
    """
    content = read_bytes(path)
    return None if content is None else parse_json(content, str(path))


def read_bytes(path: Path, most: int = LARGEST_FILE) -> bytes | None:
    """The content of a file of `most` bytes; None if there is no file.

    Raises:
        ValueError: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > most:
        raise ValueError(f"{path} is larger than {most // 2**20} MB, which no file of its kind is.")
    return content


def parse_json(content: bytes | str, place: str) -> Any:
    """The value of a text in JSON. A number that is not finite, for which JSON has no word, is null.

    Args:
        place: what holds it, for the error.

    Raises:
        ValueError: it is no JSON within bounds.
    """
    try:
        value = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"{place} is not JSON: {error}") from error
    try:
        check_bounds(value)
    except Misfit as error:
        raise ValueError(f"{place} is not as this project writes it: {error}.") from error
    return value


def check_bounds(value: Any) -> None:
    """Refuse what no file of this project holds, wherever it stands.

    Raises:
        Misfit: it is nested too deep, or holds a text that is too long or cannot be written as UTF-8, or a
            number that is too large.
    """
    waiting: list[tuple[Any, str, int]] = [(value, "", 0)]
    while waiting:
        value, place, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value, place)
        elif isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise Misfit(f"{_place(place)} is a number beyond all use")
        elif isinstance(value, dict | list):
            if depth == DEEPEST:
                raise Misfit(f"{_place(place)} is nested deeper than {DEEPEST} times")
            for key, inner in _items(value):
                if isinstance(key, str):
                    _check_text(key, place)
                waiting.append((inner, _inner(place, key), depth + 1))


def check_type(value: Any, wanted: Any, place: str = "") -> None:
    """Compare a value with a type.

    Raises:
        Misfit: they differ.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted in (Any, object):
        return
    if origin is NotRequired:
        check_type(value, arguments[0], place)
    elif origin is Annotated:
        check_type(value, arguments[0], place)
        if not all(value in rule for rule in arguments[1:]):
            raise Misfit(f"{_place(place)} must be {describe(wanted)}")
    elif is_typeddict(wanted):
        _check_object(value, wanted, place)
    elif origin is list and isinstance(value, list):
        for number, inner in enumerate(value):
            check_type(inner, arguments[0], _inner(place, number))
    elif origin is dict and isinstance(value, dict):
        for key, inner in value.items():
            check_type(key, arguments[0], _inner(place, key))
            check_type(inner, arguments[1], _inner(place, key))
    elif origin in (Union, types.UnionType):
        _check_any(value, arguments, place)
    elif not _is_plain(value, wanted):
        raise Misfit(f"{_place(place)} must be {describe(wanted)}, not {_said(value)}")


def unknown_keys(value: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """The places that a type does not know of, in a value that is of it."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (NotRequired, Annotated):
        yield from unknown_keys(value, arguments[0], place)
    elif is_typeddict(wanted) and isinstance(value, dict):
        hints = _hints(wanted)
        for key, inner in value.items():
            if key in hints:
                yield from unknown_keys(inner, hints[key], _inner(place, key))
            else:
                yield _inner(place, key)
    elif origin in (list, dict):
        for key, inner in _items(value):
            yield from unknown_keys(inner, arguments[-1], _inner(place, key))


def describe(wanted: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is NotRequired:
        return describe(arguments[0])
    if origin is Annotated:
        return " ".join([describe(arguments[0]), *map(str, arguments[1:])])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    names = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "an object",
        types.NoneType: "null",
    }
    return names[dict if is_typeddict(wanted) else origin or wanted]


def _check_object(value: Any, wanted: Any, place: str) -> None:
    if not isinstance(value, dict):
        raise Misfit(f"{_place(place)} must be an object, not {_said(value)}")
    for key, hint in _hints(wanted).items():
        optional = key in wanted.__optional_keys__ or get_origin(hint) is NotRequired
        if value.get(key) is None and optional:
            continue
        if key not in value:
            raise Misfit(f"{_place(_inner(place, key))} is missing")
        check_type(value[key], hint, _inner(place, key))


def _check_any(value: Any, choices: tuple[Any, ...], place: str) -> None:
    """Compare with a union; of the choices that are no match the one that goes deepest says why."""
    whys = []
    for choice in choices:
        try:
            return check_type(value, choice, place)
        except Misfit as error:
            whys.append(str(error))
    kinds = [get_origin(choice) or choice for choice in choices]
    fitting = [why for why, kind in zip(whys, kinds, strict=True) if kind is type(value)]
    raise Misfit(
        fitting[0]
        if fitting
        else f"{_place(place)} must be {' or '.join(map(describe, choices))}, not {_said(value)}"
    )


def _is_plain(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return isinstance(value, str) and value in get_args(wanted)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, get_origin(wanted) or wanted)


@cache
def _hints(wanted: Any) -> Mapping[str, Any]:
    return get_type_hints(wanted, include_extras=True)


def _items(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str | int, Any]]:
    return iter(value.items() if isinstance(value, dict) else enumerate(value))


def _check_text(text: str, place: str) -> None:
    if len(text) > LONGEST:
        raise Misfit(f"{_place(place)} holds a text of more than {LONGEST} characters")
    if not is_text(text):
        raise Misfit(f"{_place(place)} holds half of a character")


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _inner(place: str, key: str | int) -> str:
    """A place in a list or an object; of a text that is no name the beginning, on one line."""
    if isinstance(key, int):
        return f"{place}[{key}]"
    name = key if re.fullmatch(r"[\w/-]{1,60}", key, re.ASCII) else _shortened(json.dumps(key))
    return f"{place}.{name}" if place else name


def _place(place: str) -> str:
    return place or "it"


def _said(value: Any) -> str:
    """A value that is not of its type, in few words."""
    if isinstance(value, dict | list):
        return describe(type(value))
    return _shortened(json.dumps(value))


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
