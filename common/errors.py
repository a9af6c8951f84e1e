"""User errors end in one sentence and an exit code, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch

from common.discretion import discreet
from common.interruption import Ended, ended_by_signals, follow_launcher


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
def friendly_interrupts(hint: str | Callable[[], str] = "") -> Iterator[None]:
    """For a run under way: Ctrl-C, SIGTERM, SIGHUP, a launcher or a process that is gone, a failing disk and
    unsound numbers end in a sentence, followed by `hint`, or by what it says then.

    A bug keeps its traceback.
    """

    def end(reason: str, code: int) -> NoReturn:
        _leave(f"{reason} {hint if isinstance(hint, str) else hint()}", code)

    follow_launcher()
    with ended_by_signals():
        try:
            yield
        except Ended as error:
            end(f"interrupted by {error.number.name}.", 128 + error.number)
        except KeyboardInterrupt:
            end("interrupted.", 130)
        except Unsound as error:
            end(str(error), 1)
        except OSError as error:
            file = f": {error.filename}" if error.filename else ""
            end(f"{error.strerror or error}{file}.", 1)
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            end("another process of this run has ended, so this one cannot go on.", 1)


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


def _leave(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # of a terminal that is closed
        print(f"error: {discreet(message.strip())}", file=sys.stderr, flush=True)
    sys.exit(code)
