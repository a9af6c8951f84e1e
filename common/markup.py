"""Texts of others in HTML, Markdown and Python: a template escapes what it is filled with.

`Html.fill("<b>{name}</b>", name=name)` is markup, in which `name` is text whatever it holds. What is `Html`
already goes in as it is, so that templates can be put together and nothing is escaped twice.
"""

from __future__ import annotations

import html
import json
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, LiteralString, Self
from urllib.parse import quote


class Markup(str):
    """Text of a language, in which every text of others is escaped."""

    @classmethod
    def escape(cls, text: str) -> str:
        """How the language writes a text that means nothing but itself."""
        raise NotImplementedError

    @classmethod
    def of(cls, value: object) -> Self:
        """Markup as it is; any other value as text."""
        return value if isinstance(value, cls) else cls(cls.escape(str(value)))

    @classmethod
    def fill(cls, template: LiteralString, /, **values: object) -> Self:
        """A template with `{name}`, or `{name:.1f}`, for each of the values."""
        return cls(_Formatter(cls).vformat(template, (), values))

    @classmethod
    def join(cls, parts: Iterable[object], by: LiteralString = "") -> Self:
        """The parts one after another."""
        return cls(by.join(cls.of(part) for part in parts))


class _Formatter(string.Formatter):
    def __init__(self, language: type[Markup]) -> None:
        self.language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        return self.language.of(format(value, format_spec) if format_spec else value)


class Html(Markup):
    """HTML, in elements and in quoted attributes."""

    @classmethod
    def escape(cls, text: str) -> str:
        return html.escape(_seen(text))


class Markdown(Markup):
    """Markdown as the Hub shows it, with HTML in it; a text is one line of it."""

    @classmethod
    def escape(cls, text: str) -> str:
        one_line = html.escape(" ".join(_seen(text).split()), quote=False)
        return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", one_line)

    @classmethod
    def link(cls, text: object, address: str) -> Self:
        """A link; whatever would end its address is encoded in it."""
        return cls(f"[{cls.of(text)}]({quote(address, safe='/:?&=@+,;%~#')})")

    @classmethod
    def code(cls, language: LiteralString, lines: Iterable[str]) -> Self:
        """A block of code, in a fence that no line of it closes."""
        text = "\n".join(lines)
        closing = re.findall("^ {0,3}(`{3,})[ \t]*$", text, re.MULTILINE)
        fence = "`" * max([3, *(len(run) + 1 for run in closing)])
        return cls(f"{fence}{language}\n{text}\n{fence}")

    @classmethod
    def table(cls, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Self:
        """A table; a cell is one line."""
        lines = [header, [cls("---")] * len(header), *rows]
        return cls("\n".join(f"| {' | '.join(map(cls.of, line))} |" for line in lines))


class Python(Markup):
    """Python code, in which a text is a literal, and one that shows what it holds: no character turns round
    or hides what is beside it."""

    @classmethod
    def escape(cls, text: str) -> str:
        literal = json.dumps(text, ensure_ascii=False)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in literal)


def _seen(text: str) -> str:
    """Without control characters, which no page may hold."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") and not c.isspace() else c for c in text)
