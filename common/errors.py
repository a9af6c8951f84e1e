"""User errors end in one sentence and an exit code, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Unsound(ArithmeticError):
    """Numbers that nothing may be built upon, such as NaN; the message says whose they are and what to do."""


@contextmanager
def friendly_errors() -> Iterator[None]:
    """For what depends on the user's input: a ValueError becomes `error: ...` and exit code 2, a failing
    disk exit code 1."""
    with friendly_interrupts():
        try:
            yield
        except ValueError as error:
            _leave(str(error), 2)


@contextmanager
def friendly_interrupts(hint: str = "") -> Iterator[None]:
    """For a run under way: Ctrl-C, a failing disk, unsound numbers and a process that is gone end in a
    sentence, followed by `hint`.

    A bug keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave(f"interrupted. {hint}", 130)
    except Unsound as error:
        _leave(f"{error} {hint}", 1)
    except OSError as error:
        _leave(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}. {hint}", 1)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        _leave(f"another process of this run has ended, so this one cannot go on. {hint}", 1)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether processes can no longer exchange anything; gloo, on CPUs, says it in a RuntimeError like
    many others."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the CPU has refused PyTorch memory; the latter is a RuntimeError like many others."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def friendly_memory(advice: Callable[[], str]) -> Iterator[None]:
    """A lack of memory ends in the sentence that `advice` gives and exit code 1; any other error goes on."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _leave(advice(), 1)


def _leave(message: str, code: int) -> None:
    print(f"error: {message.strip()}", file=sys.stderr)
    sys.exit(code)
