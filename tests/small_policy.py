"""The tiny pipeline's UNet with an adapter, its kernel and a table of random text states: what is done with
it."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.backbone import Backbone
from policy.policy import Policy
from policy.trajectory import Trajectory

TARGETS = Backbone.lora_targets


def parameters(policy: Policy) -> list[torch.nn.Parameter]:
    """What is trained: the adapter's."""
    return [p for p in policy.denoiser.parameters() if p.requires_grad]


@torch.no_grad()
def move(policy: Policy, by: float = 0.3) -> None:
    """Give the adapter an effect, as if it had been trained."""
    generator = torch.Generator().manual_seed(9)
    for p in parameters(policy):
        p += by * torch.randn(p.shape, generator=generator)


def sample(
    policy: Policy,
    prompt_ids: torch.Tensor,
    seed: int = 0,
    *,
    guidance_scale: float | None = None,
    storage_dtype: torch.dtype = torch.float32,
) -> Trajectory:
    """A rollout of a seed, with the policy's own guidance unless another is given."""
    scale = policy.guidance_scale if guidance_scale is None else guidance_scale
    acting = replace(policy, guidance_scale=scale)
    return acting.rollout(prompt_ids, torch.Generator().manual_seed(seed), storage_dtype=storage_dtype)
