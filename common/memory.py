"""The most memory that a run has held so far, and what to do where there is not enough of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from common.errors import friendly_memory
from common.flags import values_of

STATUS = Path("/proc/self/status")
"""Where Linux says it. getrusage(2) would count what the process that started this one held, too."""


def peak_memory_mb() -> float | None:
    """In MB: what PyTorch has allocated on the GPU if there is one, else the process's resident memory, its
    libraries included.

    None where the system does not say.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


def out_of_memory(flags: Sequence[str], on_gpu: bool) -> str:
    """The sentence for a run that there is not enough memory for, with the flags that would save some."""
    advice = (
        f"try, in this order and together: {', '.join(flags)}"
        if flags
        else "every flag that saves memory is set: take a larger device"
    )
    return f"there is not enough {'GPU ' if on_gpu else ''}memory; {advice} (docs/hardware.md)."


Command = Callable[[Any], Any]


@contextmanager
def advising(config: Any, *sizes: str, **known: Any) -> Iterator[None]:
    """For a command that draws: a lack of memory ends in the sentence above, which names --mixed_precision
    and half of these batch sizes.

    Args:
        config: its settings.
        sizes: names of the batch sizes, of what costs least first. What is None when memory is lacking is not
            known yet and not named.
        known: values in place of the settings' own.
    """
    values = (values_of(config) if is_dataclass(config) else vars(config)) | known

    def advice() -> str:
        flags = ["--mixed_precision bf16"] if values.get("mixed_precision", "bf16") in ("no", None) else []
        flags += [f"--{name} {size // 2}" for name in sizes if (size := values[name] or 1) > 1]
        return out_of_memory(flags, torch.cuda.is_available())

    with friendly_memory(advice):
        yield


def advised(*sizes: str) -> Callable[[Command], Command]:
    """A command whose whole run is within `advising`."""

    def wrap(command: Command) -> Command:
        @wraps(command)
        def run(config: Any) -> Any:
            with advising(config, *sizes):
                return command(config)

        return run

    return wrap
