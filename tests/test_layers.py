"""The rooms of the house, lowest first: a room imports only from rooms below it, and nothing imports an
entry point."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "canvas",
    "common",
    "pipelines",
    "policy",
    "reward",
    "environment",
    "critic",
    "hub",
    "evaluation",
    "training",
    "train_unlearn_lora",
    "benchmarks",
)
ENTRY_POINTS = ("__main__", "train", "train_unlearn_lora")
MODULES = sorted(
    path
    for room in ROOMS
    for path in ([ROOT / f"{room}.py"] if (ROOT / f"{room}.py").is_file() else (ROOT / room).rglob("*.py"))
)


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it; of `from a import b` both `a` and `a.b`, since `b` may
    be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    return module.split(".")[0]


def is_entry_point(module: str) -> bool:
    """Whether it is one of this project's: the script, a `__main__` or a `train` module."""
    path = ROOT / module.replace(".", "/")
    return module.split(".")[-1] in ENTRY_POINTS and path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_import_points_down(path: Path) -> None:
    here = ROOMS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    above = {name for name in imported(path) if room_of(name) in ROOMS and ROOMS.index(room_of(name)) > here}
    entry_points = {name for name in imported(path) if is_entry_point(name)}
    assert not above, "an arrow uphill"
    assert not entry_points, "an entry point is imported"
    assert "tests" not in {room_of(name) for name in imported(path)}


def test_every_room_is_in_the_list() -> None:
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.glob("*/__init__.py")}
    assert found - {"tests"} <= set(ROOMS)


def test_an_arrow_uphill_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from training import control\n    import critic.train\n")
    found = set(imported(path))
    assert {"training", "training.control", "critic.train"} <= found and is_entry_point("critic.train")
