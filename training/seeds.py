"""Every random choice has a generator of its own, the same on every process, so that resuming needs no random
state."""

from __future__ import annotations

from enum import IntEnum

import torch


class Purpose(IntEnum):
    """What a generator is for."""

    WARMUP = 0
    RETAIN = 1
    ROLLOUT = 2
    UPDATE = 3
    CRITIC = 4
    COOLDOWN = 5
    VOCABULARY = 6
    TEXT = 7


def generator_for(seed: int, purpose: Purpose, iteration: int = 0) -> torch.Generator:
    """The generator of one purpose in one iteration of a run."""
    return torch.Generator().manual_seed(((seed * 7919 + purpose) * 100_003 + iteration) * 1009 % 2**63)
