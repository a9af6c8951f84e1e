"""How often a network that denoises is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


class Count:
    """How many samples a network has been given."""

    samples = 0


def samples_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many samples a call of a network has; each class of pipelines gives them in its own way."""
    states = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
    return len(states)


@contextmanager
def counted(denoiser: nn.Module) -> Iterator[Count]:
    """Within: every sample that the network is given counts, whichever way its pipeline calls it."""
    count = Count()

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count.samples += samples_of(args, kwargs)

    hook = denoiser.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()
