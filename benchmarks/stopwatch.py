"""How long the parts of a run take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch


class Stopwatch:
    """Adds up the seconds spent in the functions it has wrapped, by name; what one calls that is wrapped too
    counts there alone.

    Attributes:
        seconds: by name.
        calls: how often each name was called.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._within: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, under the watch."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = now()
            self._within.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                taken = now() - started
                self.seconds[name] += taken - self._within.pop()
                self.calls[name] += 1
                if self._within:
                    self._within[-1] += taken

        return wrapped

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.calls.clear()


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
