"""The tiny pipeline's UNet with an adapter, its kernel and a table of random text states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel

from pipelines.conditioning import PromptTable
from policy.kernel import ReverseKernel
from policy.rollout import rollout
from policy.trajectory import Trajectory

TARGETS = ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]


@dataclass
class Policy:
    unet: UNet2DConditionModel
    parameters: list[torch.nn.Parameter]
    kernel: ReverseKernel
    table: PromptTable

    @torch.no_grad()
    def move(self, by: float = 0.3) -> None:
        """Give the adapter an effect, as if it had been trained."""
        generator = torch.Generator().manual_seed(9)
        for p in self.parameters:
            p += by * torch.randn(p.shape, generator=generator)

    def sample(
        self,
        prompt_ids: torch.Tensor,
        seed: int = 0,
        guidance_scale: float = 5.0,
        storage_dtype: torch.dtype = torch.float32,
    ) -> Trajectory:
        generator = torch.Generator().manual_seed(seed)
        return rollout(
            self.unet, self.kernel, self.table, prompt_ids, guidance_scale, generator, storage_dtype
        )
