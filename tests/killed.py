"""Processes that are killed at a moment that a test chooses, and what must be the same all the same."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

OPERATIONS = ((os, "fsync"), (os, "replace"), (os, "fchmod"), (tempfile, "mkstemp"), (tempfile, "mkdtemp"))
"""What is asked of the disk, in every way of writing."""


def run_and_kill(action: Callable[[], object], at: int | None = None) -> int:
    """Run something in a fork of this process, and kill it by SIGKILL before the `at`-th thing that it asks
    of the disk; its exit code, or the negative number of the signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if at is not None:
                _kill_at(at)
            action()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_at(at: int) -> None:
    count = 0
    for module, name in OPERATIONS:
        real = getattr(module, name)

        def call(*given: Any, _real: Callable[..., Any] = real, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*given, **named)

        setattr(module, name, call)


def outcome(directory: Path) -> dict[str, Any]:
    """Every byte and number that a run leaves and that is not a time or a place."""
    results = json.loads((directory / "results.json").read_text())
    for measured in ("seconds", "peak_memory_mb"):
        results["training"].pop(measured)
    del results["settings"]
    tensors = {
        path.relative_to(directory).as_posix(): load_file(path)
        for path in sorted(directory.rglob("*.safetensors"))
    }
    numbers = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(directory.rglob("state.json"))
    }
    for entry in numbers.values():
        for measured in ("seconds", "peak_memory_mb"):
            entry["progress"].pop(measured)
    return {
        "results": results,
        "diagnostics": (directory / "diagnostics.jsonl").read_text(),
        "numbers": numbers,
        "tensors": {
            name: {key: value.tolist() for key, value in part.items()} for name, part in tensors.items()
        },
    }
