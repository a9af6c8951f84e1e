"""Many pictures at once: each is a function of its seed and index, so processes share them in any way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

Job = TypeVar("Job")


def shares(count: int, size: int) -> list[tuple[int, int]]:
    """First index and number of pictures, for shares of `size` at most."""
    return [(start, min(size, count - start)) for start in range(0, count, size)]


def draw_in_parallel(draw: Callable[[Job], np.ndarray], jobs: Sequence[Job], name: str) -> torch.Tensor:
    """All pictures of all jobs, in order: (N, 3, H, W) uint8.

    Args:
        draw: a function of a module; a job -> (n, H, W, 3) uint8.
        name: of the progress bar.
    """
    with ProcessPoolExecutor() as pool:
        chunks = list(tqdm(pool.map(draw, jobs), total=len(jobs), desc=name))
    return torch.from_numpy(np.concatenate(chunks)).permute(0, 3, 1, 2).contiguous()
