"""How often a network that denoises is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Count:
    """How many samples a network has been given."""

    samples = 0


@contextmanager
def counted(denoiser: nn.Module) -> Iterator[Count]:
    """Within: every sample that the network is given counts, whichever way its pipeline calls it."""
    count = Count()

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        count.samples += len(states)

    hook = denoiser.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()
