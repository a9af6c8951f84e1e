"""The most memory that a run has held so far."""

from __future__ import annotations

import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
"""Where Linux says it. getrusage(2) would count what the process that started this one held, too."""


def peak_memory_mb() -> float | None:
    """In MB: what PyTorch has allocated on the GPU if there is one, else the process's resident memory, its libraries included.

    None where the system does not say.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None
