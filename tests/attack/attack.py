"""What the attacks share: how many of them, and counting how they end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

FULL = bool(os.environ.get("ATTACK"))
"""Whether all attacks are tried, as `make attack` does; otherwise about a hundredth of them, always the
same."""

T = TypeVar("T")
Tally = Callable[[str, str], None]
"""Counts one attack of a kind ("full disks") by how it ended ("refused")."""


def share(attacks: int) -> int:
    """How many of these to try."""
    return attacks if FULL else max(1, attacks // 100)


def sample(attacks: Iterable[T], seed: int = 0) -> Sequence[T]:
    """All of these, or a hundredth of them."""
    everything = list(attacks)
    return everything if FULL else random.Random(seed).sample(everything, share(len(everything)))
