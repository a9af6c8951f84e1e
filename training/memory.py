"""The most memory that a run has held so far."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory_mb() -> float | None:
    """In MB: what PyTorch has allocated on the GPU if there is one, else the process's resident memory, its libraries included.

    None where the system does not say.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
