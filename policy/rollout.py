"""Rollouts of the denoising policy, and the one place where the UNet is asked for a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel

from common.processes import all_rows
from pipelines.backbone import latent_shape
from pipelines.conditioning import Conditioning, batches
from policy.trajectory import Trajectory

if TYPE_CHECKING:
    from policy.policy import Policy


def guided_output(
    unet: UNet2DConditionModel,
    timestep: torch.Tensor,
    x: torch.Tensor,
    prompts: Conditioning,
    *,
    negative: Conditioning,
    guidance_scale: float,
) -> torch.Tensor:
    """The UNet's output at `timestep` under classifier-free guidance, both branches in one pass.

    Args:
        x: (B, C, H, W) states.
        prompts: conditioning of their prompts, length B.
        negative: conditioning of no prompt, length 1.
        guidance_scale: 1 or less asks the UNet for the prompt's branch alone.

    Returns:
        (B, C, H, W), with gradient if it is enabled.
    """
    if guidance_scale <= 1:
        return _ask(unet, timestep, x, prompts)
    both = Conditioning.cat([negative.expand(len(x)), prompts])
    without, with_prompt = _ask(unet, timestep, torch.cat([x, x]), both).float().chunk(2)
    return without + guidance_scale * (with_prompt - without)


def _ask(
    unet: UNet2DConditionModel, timestep: torch.Tensor, x: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Called as the stock pipelines call it, argument for argument: a compiled UNet is one for both."""
    conditioning = conditioning.to(unet.dtype)
    return unet(
        x.to(unet.dtype),
        timestep,
        encoder_hidden_states=conditioning.states,
        timestep_cond=None,
        cross_attention_kwargs=None,
        added_cond_kwargs=conditioning.added,
        return_dict=False,
    )[0]


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
    shape, kernel = (len(prompt_ids), *latent_shape(policy.unet)), policy.kernel
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
    kernel, prompts = policy.kernel, policy.table.conditioning[prompt_ids]
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
