"""Rollouts of the denoising policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.processes import all_rows
from pipelines.conditioning import batches
from policy.trajectory import Trajectory

if TYPE_CHECKING:
    from policy.policy import Policy


@torch.no_grad()
def rollout(
    policy: Policy,
    prompt_ids: torch.Tensor,
    generator: torch.Generator,
    *,
    storage_dtype: torch.dtype = torch.float32,
    offload: bool = False,
    rows: slice = slice(None),
) -> Trajectory:
    """Sample one trajectory for each of `prompt_ids` (B,) from the policy as it is.

    The noise is drawn for all of them at once, so that the trajectories do not depend on how many are sampled
    together, or which here.

    Args:
        storage_dtype: states are rounded to it before their log-probability is taken, so that an update that
            reads them back finds exactly the ratio 1 (field-tested pitfall: scoring the unrounded sample does
            not).
        offload: keep the trajectories in main memory (`Trajectory.offloaded`), batch by batch.
        rows: which of them are sampled, and returned; by default all.
    """
    shape, kernel = (len(prompt_ids), *policy.backbone.latent_shape), policy.kernel
    noise = [
        torch.randn(shape, generator=generator, device=generator.device)[rows].clone()
        for _ in range(kernel.num_steps + 1)
    ]
    ids, parts = prompt_ids[rows], []
    for batch in batches(len(ids), policy.batch_size):
        # All steps' noise at once, so that no step waits for its own.
        on_device = [drawn[batch].to(kernel.stds.device) for drawn in noise]
        part = _sample(policy, ids[batch], on_device, storage_dtype)
        parts.append(part.offloaded() if offload else part)
    return Trajectory.cat(parts)


def _sample(
    policy: Policy, prompt_ids: torch.Tensor, noise: Sequence[torch.Tensor], storage_dtype: torch.dtype
) -> Trajectory:
    """A batch of trajectories from `noise`, T + 1 times (B, C, H, W) on the kernel's device."""
    kernel, prompts = policy.kernel, policy.current.conditioning[prompt_ids]
    x = noise[0].to(storage_dtype)
    latents, means, log_probs = [x], [], []
    for step in range(kernel.num_steps):
        mean = policy.mean(x, step, prompts)
        x = (mean + kernel.stds[step] * noise[step + 1]).to(storage_dtype)
        latents.append(x)
        means.append(mean.to(storage_dtype))
        log_probs.append(kernel.log_prob(x, mean, step))
    return Trajectory(
        torch.stack(latents, 1),
        torch.stack(means, 1),
        torch.stack(log_probs, 1),
        kernel.timesteps,
        prompt_ids,
    )


def all_trajectories(mine: Trajectory, prompt_ids: torch.Tensor) -> Trajectory:
    """This process's trajectories -> those of all processes, one for each of `prompt_ids`."""
    latents, means, log_probs = (
        all_rows(part, len(prompt_ids)) for part in (mine.latents, mine.means, mine.log_probs)
    )
    return Trajectory(latents, means, log_probs, mine.timesteps, prompt_ids)
