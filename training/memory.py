"""The most memory that a run has held so far."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_mb() -> float:
    """In MB: what PyTorch has allocated on the GPU if there is one, else the process's resident memory, its libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (1e6 if sys.platform == "darwin" else 1e3) * (1 if sys.platform == "darwin" else 1.024)
