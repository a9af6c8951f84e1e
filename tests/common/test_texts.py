"""Users' texts, as their editors and shells write them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sources import nodes

from common.texts import folded, lines_of, read_text

OWN = {
    "common/checkpoints.py": "checkpoints of a run",
    "common/memory.py": "the operating system's",
    "common/network.py": "configs of our networks",
    "evaluation/artwork.py": "the world beside a judge",
    "evaluation/judge.py": "a judge's config",
    "evaluation/judges.py": "a classifier's config",
    "evaluation/shards.py": "indices of images",
    "hub/card.py": "a card",
    "hub/pull.py": "configs of our networks",
    "hub/push.py": "a card",
    "hub/space/app.py": "what the page shows",
    "reward/concept/vocabulary.py": "the bundled names",
    "reward/latents.py": "labels of a cache",
    "training/diagnostics.py": "a run's metrics",
}
"""Modules that read texts that this project, or a program, has written, and which."""
TEXT = "# prompts\na café in Zürich\n猫の絵\n"
AS_EDITORS_WRITE = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": TEXT.encode("utf-8-sig"),
    "utf-16 little-endian": b"\xff\xfe" + TEXT.encode("utf-16-le"),
    "utf-16 big-endian": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "windows": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
    "windows shell": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "old mac": TEXT.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("kind", AS_EDITORS_WRITE)
def test_a_text_is_the_same_in_every_encoding(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_bytes(AS_EDITORS_WRITE[kind])
    assert read_text(tmp_path / "file.txt", "prompt file") == TEXT


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a café".encode("latin-1"), "byte 5 is no UTF-8; save it as UTF-8"),
        ("a cat\n".encode("utf-16-le"), "save it as UTF-8"),
        ("a cat\n".encode("utf-16-be"), "save it as UTF-8"),
        (b"\xff\xfea", "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0", "save it as UTF-8"),
    ],
)
def test_what_is_in_no_known_encoding_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"prompt file .*file\.txt cannot be read.*{why}"):
        read_text(tmp_path / "file.txt", "prompt file")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ValueError, match=rf"spec {path} cannot be read: \w+"):
            read_text(path, "spec")


def test_only_line_breaks_end_a_line() -> None:
    assert lines_of("one\u2028still\x0bone\x85line\ntwo") == ["one\u2028still\x0bone\x85line", "two"]


def test_texts_that_read_the_same_are_the_same() -> None:
    assert folded("Café  Müller\n") == folded("cafe\u0301 mu\u0308ller") == folded("ＣＡＦÉ\u00a0MÜLLER")
    assert folded("Straße") == folded("STRASSE") and folded("cat") != folded("cats")


def test_no_other_module_reads_the_texts_of_users() -> None:
    found = {name for name, node in nodes() if isinstance(node, ast.Attribute) and node.attr == "read_text"}
    assert found == set(OWN)
