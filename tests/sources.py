"""The sources of the rooms, as the tests walk them that look for what goes round a common way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "benchmarks", ".venv", "build", "runs"}


@cache
def _trees() -> dict[str, ast.Module]:
    found = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py"))}
    return {
        name.as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if name.parts[0] not in OUTSIDE
    }


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Everything that a file of a room says, with the file's name."""
    for name, tree in _trees().items():
        for node in ast.walk(tree):
            yield name, node
