"""Rollouts of the denoising policy, and the one place where the UNet is asked for a step."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from policy.backbone import latent_shape
from policy.kernel import ReverseKernel
from policy.trajectory import Conditioning, PromptTable, Trajectory


def guided_output(
    unet: UNet2DConditionModel, timestep: torch.Tensor, x: torch.Tensor, prompts: Conditioning, negative: Conditioning, guidance_scale: float
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


def _ask(unet: UNet2DConditionModel, timestep: torch.Tensor, x: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    conditioning = conditioning.to(unet.dtype)
    return unet(x.to(unet.dtype), timestep, conditioning.states, added_cond_kwargs=conditioning.added).sample


def step_mean(
    unet: UNet2DConditionModel,
    kernel: ReverseKernel,
    x: torch.Tensor,
    step: int,
    prompts: Conditioning,
    negative: Conditioning,
    guidance_scale: float,
) -> torch.Tensor:
    """Mean of the reverse kernel at `step` for states `x` (B, C, H, W); float32. The other arguments are those of `guided_output`."""
    return kernel.mean(guided_output(unet, kernel.timesteps[step], x, prompts, negative, guidance_scale), x, step)


@torch.no_grad()
def rollout(
    unet: UNet2DConditionModel,
    kernel: ReverseKernel,
    table: PromptTable,
    prompt_ids: torch.Tensor,
    guidance_scale: float,
    generator: torch.Generator,
    storage_dtype: torch.dtype = torch.float32,
) -> Trajectory:
    """Sample one trajectory for each of `prompt_ids` (B,) from the current policy.

    States are rounded to `storage_dtype` before their log-probability is taken, so that an update that reads
    them back finds exactly the ratio 1 (field-tested pitfall: scoring the unrounded sample does not).
    """
    shape = (len(prompt_ids), *latent_shape(unet))
    device = kernel.stds.device
    prompts = table.conditioning[prompt_ids]

    def noise() -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=generator.device).to(device)

    x = noise().to(storage_dtype)
    latents, means, log_probs = [x], [], []
    for step in range(kernel.num_steps):
        mean = step_mean(unet, kernel, x, step, prompts, table.negative, guidance_scale)
        x = (mean + kernel.stds[step] * noise()).to(storage_dtype)
        latents.append(x)
        means.append(mean.to(storage_dtype))
        log_probs.append(kernel.log_prob(x, mean, step))
    return Trajectory(torch.stack(latents, 1), torch.stack(means, 1), torch.stack(log_probs, 1), kernel.timesteps, prompt_ids)
