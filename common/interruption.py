"""How a process is told to end: Ctrl-C, SIGTERM, which spot machines send, SIGHUP of a terminal that is
closed, and the death of its launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any, NoReturn, Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAUNCHED = ("ACCELERATE_DYNAMO_USE_FULLGRAPH", "TORCHELASTIC_RUN_ID")
"""Variables that `accelerate launch` and `torchrun` set, and nobody else."""
GLANCE = 0.5
"""Seconds between two looks at the launcher."""


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP, where nothing else is made of it.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Interruption:
    """Within it the first signal is noted in `received`, so that what is under way can be ended in order; a
    second ends the run as Ctrl-C does."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before = _handle(SIGNALS, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        logger.warning(f"{self.received.name}: the run ends after this iteration; once more ends it now.")


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP raise `Ended`, as Ctrl-C raises KeyboardInterrupt."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Ended(signal.Signals(number))

    untouched = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    before = _handle(untouched, end)
    try:
        yield
    finally:
        _restore(before)


@cache
def follow_launcher() -> None:
    """Send this process SIGTERM when the launcher that started it is gone, as after `kill -9`. A process that
    no launcher started outlives its parent, as under nohup."""

    def watch(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(GLANCE)
        os.kill(os.getpid(), signal.SIGTERM)

    if any(name in os.environ for name in LAUNCHED):
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def leave(received: signal.Signals, message: str) -> NoReturn:
    """End the process with a sentence and the exit code of one that the signal ended."""
    with suppress(OSError):  # of a terminal that is closed
        print(f"{received.name}: {message}", file=sys.stderr, flush=True)
    sys.exit(128 + received)


Handler = Callable[[int, FrameType | None], None]


def _handle(numbers: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, Any]:
    """Set a handler for signals, but not for a SIGHUP that nohup has ignored; the handlers before it."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        return {}
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
