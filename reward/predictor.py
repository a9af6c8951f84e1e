"""The noise-conditioned predictor: a noisy latent and its timestep -> the CLIP embedding its finished image
will have.

It knows no concept, so one checkpoint of a base model serves them all; a concept is only a text embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.film import FiLMTrunk, timestep_embedding, widths_for
from common.network import Checkpoint

BATCH_NUMBERS = 2**19
"""Latent numbers that are scored together: 2048 states of 4x8x8, 32 of 4x64x64. Their activations are
about a hundred times as large."""


class RewardPredictor(Checkpoint):
    """f(x_t, t) -> the teacher's embedding of the finished image (B, D), on latents, without a decode.

    Args:
        in_channels: channels of the latent.
        sample_size: side of the latent, or [height, width].
        embed_dim: length of the teacher's embedding.
        width: channels of the first stage.
        condition_dim: length of the timestep's condition vector.
        clip_model: the teacher it was distilled from, as open_clip names it (None for a local directory).
        prompts: the prompts its training images were drawn for, which the base is thereby known to draw.
        timestep_conditioning: whether it is told the timestep; without, the condition vector is the same for
            every latent.
        unit_length: whether it answers with embeddings of length one, as a CLIP's are; a classifier's logits
            are not.
        origin: what it was made from and with, for the record and for `reward.origin.check_fit`: base,
            noise_schedule, teacher, data, training, versions.
    """

    kind = "reward predictor"

    def __init__(
        self,
        in_channels: int,
        sample_size: int | list[int],
        embed_dim: int,
        *,
        width: int = 48,
        condition_dim: int = 128,
        clip_model: str | None = None,
        prompts: list[str] | None = None,
        timestep_conditioning: bool = True,
        unit_length: bool = True,
        origin: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "sample_size": sample_size,
            "embed_dim": embed_dim,
            "width": width,
            "condition_dim": condition_dim,
            "clip_model": clip_model,
            "prompts": prompts or [],
            "timestep_conditioning": timestep_conditioning,
            "unit_length": unit_length,
            "origin": origin or {},
        }
        self.condition_dim = condition_dim
        self.timestep_conditioning, self.unit_length = timestep_conditioning, unit_length
        self.condition = nn.Sequential(
            nn.Linear(condition_dim, condition_dim),
            nn.SiLU(),
            nn.Linear(condition_dim, condition_dim),
            nn.SiLU(),
        )
        self.trunk = FiLMTrunk(in_channels, widths_for(sample_size, width), condition_dim)
        self.head = nn.Sequential(
            nn.Linear(self.trunk.out_features, 2 * embed_dim), nn.SiLU(), nn.Linear(2 * embed_dim, embed_dim)
        )

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) noisy latents, (B,) scheduler timesteps -> (B, D)."""
        if not self.timestep_conditioning:
            timesteps = torch.zeros_like(timesteps)
        condition = self.condition(timestep_embedding(timesteps, self.condition_dim))
        embeddings = self.head(self.trunk(latents.float(), condition))
        return F.normalize(embeddings, dim=-1) if self.unit_length else embeddings

    @torch.no_grad()
    def score_trajectory(
        self, latents: torch.Tensor, timesteps: torch.Tensor, batch_size: int | None = None
    ) -> torch.Tensor:
        """(B, S, C, H, W) states, wherever they lie, at the timesteps (S,) -> embeddings (B, S, D).

        Args:
            batch_size: states scored together; by default as many as hold `BATCH_NUMBERS` numbers.
        """
        count, states = latents.shape[:2]
        batch_size = batch_size or max(1, BATCH_NUMBERS // latents[0, 0].numel())
        flat, t = latents.flatten(0, 1), timesteps.repeat(count)
        chunks = [
            self(x.to(t.device), s) for x, s in zip(flat.split(batch_size), t.split(batch_size), strict=True)
        ]
        return torch.cat(chunks).reshape(count, states, -1)
