"""How far learning carries rounding: the bound for two runs whose sums are added up in another order."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ADAPTER = "pytorch_lora_weights.safetensors"
SMOOTH = {"adam_epsilon": 0.1}
"""AdamW's first steps are the signs of the gradient, and the sign of what is hardly more than rounding is
anything. With a large epsilon a small gradient takes a small step, so that rounding grows as smoothly as
the policy learns."""


def nudged(pipeline: Path, directory: Path) -> Path:
    """A copy of the base whose first convolution differs in the last bit of every weight."""
    shutil.copytree(pipeline, directory)
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.nextafter(weights["conv_in.weight"], torch.tensor(torch.inf))
    save_file(weights, path, metadata={"format": "pt"})
    return directory


def adapter(directory: Path) -> torch.Tensor:
    """(N,) all weights of the adapter, float64."""
    return torch.cat(
        [value.double().flatten() for _, value in sorted(load_file(directory / ADAPTER).items())]
    )


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """L2, as a share of the length of `b`."""
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def assert_as_near_as_a_bit(other: Path, one: Path, bit: Path) -> None:
    """An adapter is no further from the one of `one` than a few times that of `bit` is, whose base differs in
    last bits."""
    assert distance(adapter(other), adapter(one)) <= 30 * distance(adapter(bit), adapter(one)) < 0.1
