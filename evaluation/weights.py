"""Weights of other people's classifiers, from the files they are published in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from common.weights import Kind, check_kinds, check_values, kinds_of


class UnreadableWeights(ValueError):
    """A file of weights that is missing, damaged, or a pickle of more than tensors, which could run code."""


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict from `.safetensors`, or from a pickle (`.pth`) of tensors and plain containers only.

    A pickle is read by `torch.load(weights_only=True)`, which runs no code of the file. A state under
    `model_state_dict` is taken out.

    Raises:
        UnreadableWeights: the file cannot be read that way.
        ValueError: it holds no tensors.
    """
    path = Path(path)
    try:
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a pickle may raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UnreadableWeights(
            f"The weights {path} were not loaded ({reason}). Safetensors are read, and pickles of tensors only "
            "(torch.load with weights_only=True); any other pickle could run code."
        ) from error
    state = loaded.get("model_state_dict", loaded) if isinstance(loaded, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise ValueError(f"The weights {path} hold no state dict.")
    return state


def load_whole(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load a state dict that must be the module's own; older ones do not count the batches of batch norms.

    Raises:
        ValueError: names, shapes or kinds of numbers differ, or values are NaN or infinite.
    """
    found = {name: Kind(tuple(t.shape), not t.is_floating_point()) for name, t in state.items()}
    wanted = {
        name: kind
        for name, kind in kinds_of(module).items()
        if name in found or not name.endswith(".num_batches_tracked")
    }
    check_kinds("it", wanted, found)
    check_values("it", state)
    module.load_state_dict(state)
