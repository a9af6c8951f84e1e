"""Ctrl-C and SIGTERM, which spot machines send, end a run after the iteration under way rather than within
it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Interruption:
    """Within it the first SIGINT or SIGTERM is noted in `received`; a second ends the run as Ctrl-C does."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {
                number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        logger.warning(f"{self.received.name}: the run ends after this iteration; once more ends it now.")


def leave(received: signal.Signals, message: str) -> None:
    """End the process with a sentence and the exit code of one that the signal ended."""
    print(f"{received.name}: {message}", file=sys.stderr)
    sys.exit(128 + received)
