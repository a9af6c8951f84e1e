"""What lies in a GPU's memory all through training, by flags: arithmetic on configs. Activations are not
in it (`peaks`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.memory.models import TOKENS, Model
from pipelines.memory import DTYPES
from policy.lora import add_lora

BLOCK = 64
"""Weights of a 4-bit layer that share a float32 scale."""
ADAM_BYTES = {False: 8, True: 2}
"""Both moments of a parameter, without and with --use_8bit_adam: its scales for blocks of 256 are left
out, and so is that bitsandbytes keeps tensors of fewer than 4096 parameters in float32, so that its figure
is the least it can be."""
FLAG_SETS: dict[str, list[str]] = {
    "none": [],
    "bf16": ["--mixed_precision", "bf16"],
    "bf16, 8-bit Adam": ["--mixed_precision", "bf16", "--use_8bit_adam"],
    "bf16, offloading": ["--mixed_precision", "bf16", "--offload_models", "--offload_trajectories"],
    "8-bit base": ["--mixed_precision", "bf16", "--load_in_8bit"],
    "4-bit base": ["--mixed_precision", "bf16", "--load_in_4bit"],
    "4-bit base, offloading": [
        "--mixed_precision",
        "bf16",
        "--load_in_4bit",
        "--offload_models",
        "--offload_trajectories",
    ],
}
COLUMNS = (
    "UNet",
    "text encoders",
    "VAE",
    "teacher",
    "reward predictor",
    "adapter, gradients, Adam",
    "prompts",
    "trajectories",
)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters.

    Attributes:
        linear: (out, in) of the UNet's Linear layers, which are what is quantised.
        unet_rest: the UNet's other parameters, the biases of those layers included.
        adapter: of the LoRA.
    """

    linear: list[tuple[int, int]]
    unet_rest: int
    text_encoders: int
    vae: int
    teacher: int
    predictor: int
    adapter: int


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weigh(model: Model, rank: int, targets: list[str]) -> Weights:
    """Count a model's parameters without making them."""
    with torch.device("meta"):
        unet = model.build_unet()
        linear = [(m.out_features, m.in_features) for m in unet.modules() if isinstance(m, nn.Linear)]
        rest = count(unet) - sum(rows * columns for rows, columns in linear)
        adapter = sum(p.numel() for p in add_lora(unet, rank, rank, targets))
        others = [
            sum(map(count, model.build_text_encoders())),
            count(model.build_vae()),
            count(model.build_teacher("meta")),
            count(model.build_predictor()),
        ]
    return Weights(linear, rest, *others, adapter)


def linear_bytes(linear: Sequence[tuple[int, int]], width: int, args: argparse.Namespace) -> int:
    """Weights of Linear layers: `width` bytes each, or as bitsandbytes quantises them."""
    if args.load_in_4bit:
        return sum(-(-rows * columns // 2) + 4 * -(-rows * columns // BLOCK) for rows, columns in linear)
    if args.load_in_8bit:
        return sum(rows * columns + 4 * rows for rows, columns in linear)
    return width * sum(rows * columns for rows, columns in linear)


def components(model: Model, weights: Weights, args: argparse.Namespace) -> dict[str, float]:
    """Bytes on the GPU during an update, by `COLUMNS`; `args` are those of the training script."""
    width = torch.finfo(DTYPES[args.mixed_precision]).bits // 8
    waiting = 0 if args.offload_models else 1
    latent = 4 * model.latent_size**2 * 4
    states = 2 * args.num_inference_steps + 1  # latents and means
    slopes = args.num_inference_steps
    # The base's trajectories of retain prompts stay; those of forget prompts have slopes beside them, the
    # first iteration's being the most.
    kept = args.retain_rollouts * states + max(args.warmup_rollouts, args.images_per_iteration) * (
        states + slopes
    )
    context = model.unet["cross_attention_dim"]
    return {
        "UNet": linear_bytes(weights.linear, width, args) + width * weights.unet_rest,
        "text encoders": waiting * width * weights.text_encoders,
        "VAE": waiting * width * weights.vae,
        "teacher": waiting * 4 * weights.teacher,
        "reward predictor": 4 * weights.predictor,
        "adapter, gradients, Adam": (4 + 4 + ADAM_BYTES[args.use_8bit_adam]) * weights.adapter,
        "prompts": args.num_retain_prompts * TOKENS * context * width,
        "trajectories": 0 if args.offload_trajectories else kept * latent,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown in MB, a row for each set of flags, with their sum."""
    lines = ["| flags | " + " | ".join(COLUMNS) + " | together |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for name, row in rows.items():
        cells = [row[column] / 1e6 for column in COLUMNS]
        shown = [
            f"{cell:,.0f}" if cell >= 10 else f"{cell:.1f}" if cell else "-" for cell in [*cells, sum(cells)]
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)
