"""Every command of the project, found by being there, and running one in this process."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
from accelerate.state import AcceleratorState

import common.flags

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    and "tests" not in path.relative_to(ROOT).parts
    and path != ROOT / "hub/space/app.py"  # what a Space starts, without a command line
)
"""What can be started, as `python -m` has it."""


class Parsed(BaseException):
    """A command line was accepted; the command is not run."""


class Ended(NamedTuple):
    """How a command ended: its exit code, None where it was to be run, and all that it said."""

    code: int | None
    said: str


def run(
    module: str, line: Sequence[str], monkeypatch: pytest.MonkeyPatch, *, parse_only: bool = False
) -> Ended:
    """Start a command as `python -m` does.

    Raises:
        Exception: it ended in a traceback.
    """
    said = StringIO()

    def parsed(*given: Any) -> Any:
        build(*given)
        raise Parsed

    build = common.flags.build
    with monkeypatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", [module, *line])
        if parse_only:
            patch.setattr(common.flags, "build", parsed)
        try:
            exec(_started(module), vars(importlib.import_module(module)))
            code: int | None = 0
        except Parsed:
            code = None
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    return Ended(code, said.getvalue())


@cache
def _started(module: str) -> CodeType:
    """What a module does where it is started."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.dump(node.test))
    return compile(ast.Module(block.body, []), module, "exec")


def sub_commands(module: str) -> list[list[str]]:
    """What may stand before a command's own flags: one of its sub-commands, or nothing if there are none. A
    module of a package that is not installed is skipped."""
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert str(error.name).split(".")[0] not in ROOMS, error
        pytest.skip(f"{module} needs {error.name}")
    return [[name] for name in getattr(loaded, "COMMANDS", [])] or [[]]


def flags_of(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every flag that a command knows, as its parser has them when it is asked for help."""
    found: list[argparse.ArgumentParser] = []
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: found.append(parser))
        run(module, [*words, "--help"], monkeypatch)
    return sorted(found[-1]._option_string_actions) if found else ["--help"]
