"""A program as its users start it, in the process of the test: one import of everything for all of them."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[1]


def run_as_main(program: str, *arguments: str) -> tuple[object, str]:
    """Run `python program.py` or `python -m program`; its exit code, 0 if it just ended, and what it says."""
    said, script = io.StringIO(), program.endswith(".py")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), warnings.catch_warnings():
        # Other tests may have imported the module; here it runs once more all the same.
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        patch.setattr(sys, "argv", [program, *arguments])
        try:
            if script:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            return ended.code or 0, said.getvalue()
    return 0, said.getvalue()


def run_programs_here(patch: pytest.MonkeyPatch) -> None:
    """Let `subprocess.run` run a program of ours in this process, one after the other. What a test has
    patched holds for them too."""

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        program, *arguments = command[2:] if command[1] == "-m" else command[1:]
        AcceleratorState._reset_state(reset_partial_state=True)
        code, said = run_as_main(program, *arguments)
        assert code == 0, said
        return subprocess.CompletedProcess(command, 0, said)

    patch.setattr(subprocess, "run", run)
