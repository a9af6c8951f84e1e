"""One policy update: clipped surrogate on forget trajectories, KL to the base on retain trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import UNet2DConditionModel

from policy.adapter import base_policy
from policy.adversary import worst_case
from policy.kernel import ReverseKernel
from policy.processes import all_rows, own_batches, sum_gradients
from policy.rollout import step_mean
from policy.surrogate import Movement, clipped_surrogate, pathwise_surrogate
from policy.trajectory import Conditioning, Experience, PromptTable, Trajectory


@dataclass(frozen=True)
class UpdateConfig:
    """How the policy is moved by one batch of trajectories.

    Attributes:
        clip_range: clip of the importance ratio, or of how far a mean may move, in units of the step's own noise (`policy.surrogate`).
        kl_coef: weight of the KL to the base on retain states.
        anchor_kl_coef: weight of the KL to the base under the anchor prompt, on forget states.
        adversarial_radius: how far from the prompt's text states that KL is asked for as well (`policy.adversary`); 0 for at the prompt alone.
        target_kl: the inner loop stops once the KL to the acting policy, averaged over the latent's numbers, exceeds it.
        inner_epochs: passes over the trajectories.
        batch_size: states in a pass of the UNet, as many as acted together in the rollout; it decides about memory and not about the update.
        retain_batch_size: retain states in a term.
        accumulation: terms in an optimizer step; a term is one denoising step of all trajectories of an experience, and the retain states beside it.
        timestep_fraction: share of the steps that are trained, drawn anew for every pass over the trajectories.
        masked_steps: how many of the last steps are never trained: their noise is small and dominates the ratio.
        guidance_scale: classifier-free guidance, the same as in the rollouts.
        max_grad_norm: gradient norm above which gradients are scaled down.
    """

    clip_range: float
    kl_coef: float
    anchor_kl_coef: float
    adversarial_radius: float
    target_kl: float
    inner_epochs: int
    batch_size: int
    retain_batch_size: int
    accumulation: int
    timestep_fraction: float
    masked_steps: int
    guidance_scale: float
    max_grad_norm: float


@dataclass
class UpdateStats:
    """Diagnostics of an update; the lists have one entry an optimizer step, `by_step` one a denoising step.

    `approx_kl` is the k3 estimate from the actions that were taken, `step_kl` the KL between the Gaussians themselves.
    `first_ratio_deviation` is the largest |ratio - 1| before anything moved, which must be 0.
    """

    first_ratio_deviation: float = 0.0
    first_clip_fraction: float = 0.0
    clip_fraction: list[float] = field(default_factory=list)
    approx_kl: list[float] = field(default_factory=list)
    step_kl: list[float] = field(default_factory=list)
    retain_kl: list[float] = field(default_factory=list)
    anchor_kl: list[float] = field(default_factory=list)
    worst_anchor_kl: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    by_step: dict[int, list[tuple[float, float, float]]] = field(default_factory=dict)
    skipped: int = 0
    stopped_early: bool = False
    unet_samples: int = 0


def update_policy(
    unet: UNet2DConditionModel,
    kernel: ReverseKernel,
    table: PromptTable,
    experiences: list[Experience],
    retain: Trajectory,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    config: UpdateConfig,
    generator: torch.Generator,
) -> UpdateStats:
    """Move the adapter along the advantages of the experiences, held to the base's means on `retain`.

    The first of `experiences` is fresh, the others are replayed: their ratios are to the policy that acted then, and the clip leaves out what
    has moved too far since. `retain` was rolled out by the base, so its stored means are the reference and the base is not asked again. The reference of
    a forget trajectory is the base under the prompt that its image came nearest to: what is drawn instead of the concept
    is held to what the base would draw, where a reward alone can be had by images that nobody would; and not only under the prompt, but under
    the text states near it that the policy does worst with, whose direction is a by-product of the backward pass.

    All processes are given the same; each takes its share of every term's rows, and their gradients are added up.
    """
    stats = UpdateStats()
    device = kernel.stds.device
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trainable_steps = kernel.num_steps - config.masked_steps
    trained_steps = max(1, round(config.timestep_fraction * trainable_steps))
    branches = 2 if config.guidance_scale > 1 else 1
    anchored, attacked = config.anchor_kl_coef > 0, config.anchor_kl_coef > 0 and config.adversarial_radius > 0
    dim = retain.latents[0, 0].numel()
    sensitivity = kernel.sensitivity()
    weights = sensitivity[:trainable_steps].median() / sensitivity
    terms = [
        (experience, int(step))
        for _ in range(config.inner_epochs)
        for experience in experiences
        for step in torch.randperm(trainable_steps, generator=generator)[:trained_steps]
    ]

    def ask(x: torch.Tensor, step: int, told: Conditioning) -> torch.Tensor:
        return step_mean(unet, kernel, x, step, told, table.negative, config.guidance_scale)

    for start in range(0, len(terms), config.accumulation):
        chunk = terms[start : start + config.accumulation]
        kls, moves, clips, retain_kls, anchor_kls, worst_kls = [], [], [], [], [], []
        for experience, step in chunk:
            count = len(experience.trajectory)
            movements, divergences, worst, held = [], [], [], []
            for rows in own_batches(count, config.batch_size):
                batch = experience.trajectory[rows]
                share = len(batch) / count
                x, action = batch.latents[:, step].to(device), batch.latents[:, step + 1].to(device)
                told, anchors = table.conditioning[batch.prompt_ids], table.conditioning[experience.anchor_ids[rows]]
                if anchored:
                    with base_policy(unet), torch.no_grad():
                        reference = ask(x, step, anchors)
                if attacked:
                    told = replace(told, states=told.states.float().requires_grad_())
                mean = ask(x, step, told)
                log_prob = kernel.log_prob(action, mean, step)
                old_log_prob, old_mean = batch.log_probs[:, step], batch.means[:, step].to(device).float()
                if experience.slopes is None:
                    surrogate = clipped_surrogate(log_prob, old_log_prob, experience.advantages[rows, step], config.clip_range, dim)
                else:
                    std, slope = kernel.stds[step].item(), experience.slopes[rows, step].to(device)
                    surrogate = pathwise_surrogate(mean, old_mean, slope, log_prob, old_log_prob, std, config.clip_range)
                loss = weights[step] * surrogate.loss
                if anchored:
                    anchor_kl = kernel.kl(mean, reference, step)
                    loss = loss + config.anchor_kl_coef * anchor_kl.mean()
                    divergences.append(anchor_kl.detach())
                accelerator.backward(loss * share / len(chunk))
                if attacked:
                    states = worst_case(told.states, told.states.grad, anchors.states, config.adversarial_radius)
                    worst_kl = kernel.kl(ask(x, step, replace(told, states=states)), reference, step)
                    accelerator.backward(config.anchor_kl_coef * worst_kl.mean() * share / len(chunk))
                    worst.append(worst_kl.detach())
                moved = kernel.kl(mean.detach(), old_mean, step)
                movements.append(torch.stack([log_prob.detach() - old_log_prob, surrogate.log_ratio, surrogate.outside.float(), moved], dim=1))
            stats.unet_samples += branches * count * (1 + anchored + attacked)
            if config.kl_coef > 0:
                drawn = torch.randint(len(retain), (config.retain_batch_size,), generator=generator)
                for rows in own_batches(len(drawn), config.batch_size):
                    part = drawn[rows]
                    mean = ask(retain.latents[part, step].to(device), step, table.conditioning[retain.prompt_ids[part]])
                    retain_kl = kernel.kl(mean, retain.means[part, step].to(device).float(), step)
                    accelerator.backward(config.kl_coef * retain_kl.mean() * (len(part) / len(drawn)) / len(chunk))
                    held.append(retain_kl.detach())
                stats.unet_samples += branches * len(drawn)
                retain_kls.append(all_rows(torch.cat(held), len(drawn)).mean().item())
            change, ratio, outside, moved = all_rows(torch.cat(movements), count).unbind(dim=1)
            movement = Movement(ratio, outside.bool())
            if anchored:
                anchor_kls.append(all_rows(torch.cat(divergences), count).mean().item())
            if attacked:
                worst_kls.append(all_rows(torch.cat(worst), count).mean().item())
            moves.append(moved.mean().item())
            kls.append(movement.approx_kl.item())
            clips.append(movement.clip_fraction.item())
            if start == 0:
                stats.first_ratio_deviation = max(stats.first_ratio_deviation, (change.exp() - 1).abs().max().item())
                stats.first_clip_fraction = max(stats.first_clip_fraction, clips[-1])
            stats.by_step.setdefault(step, []).append((movement.ratio_mean.item(), movement.ratio_std.item(), clips[-1]))
        sum_gradients(parameters)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        finite = math.isfinite(norm)
        stats.skipped += not finite
        if finite or accelerator.scaler is not None:  # a gradient scaler leaves such a step out itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stats.grad_norm.append(norm)
        stats.clip_fraction.append(sum(clips) / len(clips))
        stats.approx_kl.append(sum(kls) / len(kls))
        stats.step_kl.append(sum(moves) / len(moves))
        stats.retain_kl.append(sum(retain_kls) / max(1, len(retain_kls)))
        stats.anchor_kl.append(sum(anchor_kls) / max(1, len(anchor_kls)))
        stats.worst_anchor_kl.append(sum(worst_kls) / max(1, len(worst_kls)))
        if stats.step_kl[-1] > config.target_kl:
            stats.stopped_early = True
            break
    return stats
