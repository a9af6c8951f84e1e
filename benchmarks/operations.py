"""Floating-point operations: what a UNet does, and what a device can do. A multiplication and its addition
are two."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory.models import TOKENS
from benchmarks.stopwatch import now
from pipelines.backbone import latent_shape


def forward_operations(unet: UNet2DConditionModel, tokens: int = TOKENS) -> int:
    """Of a forward pass of one sample of the size that the UNet is configured for, counted without computing
    anything.

    Args:
        unet: of whose configuration a copy without weights is made.
        tokens: of the text.
    """
    config = unet.config
    with torch.device("meta"):
        copy = UNet2DConditionModel.from_config(config).requires_grad_(False)
        x = torch.zeros(1, *latent_shape(copy))
        states = torch.zeros(1, tokens, config.cross_attention_dim)
        pooled = (config.projection_class_embeddings_input_dim or 0) - 6 * (
            config.addition_time_embed_dim or 0
        )
        added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)} if pooled else None
        with FlopCounterMode(display=False) as counter:
            copy(x, torch.tensor(1), states, added_cond_kwargs=added)
    return counter.get_total_flops()


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of the fastest of `repeats` products of two large square matrices: what can be
    had of this device at best."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(repeats):
        started = now()
        a @ b
        fastest = min(fastest, now() - started)
    return 2 * size**3 / fastest
