"""Weights of other people's classifiers, from the files they are published in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


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
