"""One policy update: surrogate and KL to the base under the anchors on forget trajectories, KL to the base
on retain trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import UNet2DConditionModel

from common.processes import all_rows, own_batches, sum_gradients
from pipelines.conditioning import Conditioning, PromptTable
from policy.adversary import worst_case
from policy.kernel import ReverseKernel
from policy.lora import base_policy
from policy.rollout import step_mean
from policy.surrogate import Movement, clipped_surrogate, pathwise_surrogate
from policy.trajectory import Experience, Trajectory


@dataclass(frozen=True)
class UpdateConfig:
    """How the policy is moved by one batch of trajectories.

    Attributes:
        clip_range: clip of the importance ratio, or of how far a mean may move, in units of the step's own
            noise (`policy.surrogate`).
        kl_coef: weight of the KL to the base on retain states.
        anchor_kl_coef: weight of the KL to the base under the anchor prompt, on forget states.
        adversarial_radius: how far from the prompt's text states that KL is asked for as well
            (`policy.adversary`); 0 for at the prompt alone.
        target_kl: the inner loop stops once the KL to the acting policy, averaged over the latent's numbers,
            exceeds it.
        inner_epochs: passes over the trajectories.
        batch_size: states in a pass of the UNet, as many as acted together in the rollout; it decides about
            memory and not about the update.
        retain_batch_size: retain states in a term.
        accumulation: terms in an optimizer step; a term is one denoising step of all trajectories of an
            experience, and the retain states beside it.
        timestep_fraction: share of the steps that are trained, drawn anew for every pass over the
            trajectories.
        masked_steps: how many of the last steps are never trained: their noise is small and dominates the
            ratio.
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

    `approx_kl` is the k3 estimate from the actions that were taken, `step_kl` the KL between the Gaussians
    themselves. `first_ratio_deviation` is the largest |ratio - 1| before anything moved, which must be 0.
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


@dataclass(frozen=True)
class ForgetFigures:
    """Of B trajectories at one step, all processes' and detached.

    Attributes:
        change: (B,) what their log-densities have gained on those of the policy that acted; 0 before anything
            has moved.
        movement: how far they have moved, in the surrogate's units.
        step_kl: (B,) KL to the policy that acted.
        anchor_kl, worst_anchor_kl: (B,) KL to the base under the anchor, under the prompt and under the worst
            text near it; 0 where it is not asked for.
    """

    change: torch.Tensor
    movement: Movement
    step_kl: torch.Tensor
    anchor_kl: torch.Tensor
    worst_anchor_kl: torch.Tensor

    def scalars(self) -> dict[str, torch.Tensor]:
        """One number for each diagnostic of a term, still on the device."""
        return {
            "deviation": (self.change.exp() - 1).abs().max(),
            "ratio_mean": self.movement.ratio_mean,
            "ratio_std": self.movement.ratio_std,
            "clip_fraction": self.movement.clip_fraction,
            "approx_kl": self.movement.approx_kl,
            "step_kl": self.step_kl.mean(),
            "anchor_kl": self.anchor_kl.mean(),
            "worst_anchor_kl": self.worst_anchor_kl.mean(),
        }


def read(rows: list[dict[str, torch.Tensor]]) -> list[dict[str, float]]:
    """Numbers that lie on a device, with one wait for it."""
    values = torch.stack([torch.stack(list(row.values())) for row in rows]).tolist()
    return [dict(zip(row, found, strict=True)) for row, found in zip(rows, values, strict=True)]


@dataclass(frozen=True)
class Objective:
    """The loss at one denoising step, of forget and of retain states: each call adds its gradient to the
    adapter's, and returns figures.

    A gradient is that of this process's rows, figures are all processes'.
    """

    unet: UNet2DConditionModel
    kernel: ReverseKernel
    table: PromptTable
    accelerator: Accelerator
    config: UpdateConfig

    @property
    def anchored(self) -> bool:
        """Whether forget states are held to the base under the anchor."""
        return self.config.anchor_kl_coef > 0

    @property
    def adversarial(self) -> bool:
        """Whether they are under the worst text near the prompt, too."""
        return self.anchored and self.config.adversarial_radius > 0

    def unet_samples(self, forget: int, retain: int) -> int:
        """Samples that the UNet is given for so many forget and retain states."""
        branches = 2 if self.config.guidance_scale > 1 else 1
        return branches * (forget * (1 + self.anchored + self.adversarial) + retain)

    def forget(self, experience: Experience, step: int, scale: float, share: float) -> ForgetFigures:
        """The surrogate and the KLs to the anchor at `step` of all trajectories.

        Args:
            scale: of the surrogate.
            share: of this call in the optimizer step.
        """
        count = len(experience.trajectory)
        rows = own_batches(count, self.config.batch_size)
        mine = torch.cat([self._forget_rows(experience, part, step, scale, share / count) for part in rows])
        change, log_ratio, outside, step_kl, anchor_kl, worst_kl = all_rows(mine, count).unbind(dim=1)
        return ForgetFigures(change, Movement(log_ratio, outside.bool()), step_kl, anchor_kl, worst_kl)

    def retain(self, base: Trajectory, rows: torch.Tensor, step: int, share: float) -> torch.Tensor:
        """(B,) the KL to the base at `step` of its own trajectories `rows` (B,)."""
        mine = torch.cat(
            [
                self._retain_rows(base, rows[part], step, share / len(rows))
                for part in own_batches(len(rows), self.config.batch_size)
            ]
        )
        return all_rows(mine, len(rows))

    def _forget_rows(
        self, experience: Experience, rows: slice, step: int, scale: float, share: float
    ) -> torch.Tensor:
        """(b, 6): the columns of `ForgetFigures`. `share` is that of one row."""
        config, batch = self.config, experience.trajectory[rows]
        x, action, old_mean = (
            part.to(self._device)
            for part in (batch.latents[:, step], batch.latents[:, step + 1], batch.means[:, step].float())
        )
        told, anchors = (
            self.table.conditioning[batch.prompt_ids],
            self.table.conditioning[experience.anchor_ids[rows]],
        )
        if self.anchored:
            with base_policy(self.unet), torch.no_grad():
                reference = self._mean(x, step, anchors)
        if self.adversarial:
            told = replace(told, states=told.states.float().requires_grad_())
        mean = self._mean(x, step, told)
        log_prob, old_log_prob = self.kernel.log_prob(action, mean, step), batch.log_probs[:, step]
        if experience.slopes is None:
            dim = x[0].numel()
            surrogate = clipped_surrogate(
                log_prob, old_log_prob, experience.advantages[rows, step], config.clip_range, dim
            )
        else:
            slope = experience.slopes[rows, step].to(self._device)
            surrogate = pathwise_surrogate(
                mean, old_mean, slope, log_prob, old_log_prob, self.kernel.stds[step], config.clip_range
            )
        loss = scale * surrogate.loss
        anchor_kl = worst_kl = torch.zeros_like(old_log_prob)
        if self.anchored:
            anchor_kl = self.kernel.kl(mean, reference, step)
            loss = loss + config.anchor_kl_coef * anchor_kl.mean()
        self.accelerator.backward(loss * len(batch) * share)
        if self.adversarial:
            worst = replace(
                told,
                states=worst_case(told.states, told.states.grad, anchors.states, config.adversarial_radius),
            )
            worst_kl = self.kernel.kl(self._mean(x, step, worst), reference, step)
            self.accelerator.backward(config.anchor_kl_coef * worst_kl.mean() * len(batch) * share)
        step_kl = self.kernel.kl(mean.detach(), old_mean, step)
        figures = (
            log_prob - old_log_prob,
            surrogate.log_ratio,
            surrogate.outside.float(),
            step_kl,
            anchor_kl,
            worst_kl,
        )
        return torch.stack([figure.detach() for figure in figures], dim=1)

    def _retain_rows(self, base: Trajectory, rows: torch.Tensor, step: int, share: float) -> torch.Tensor:
        mean = self._mean(
            base.latents[rows, step].to(self._device), step, self.table.conditioning[base.prompt_ids[rows]]
        )
        kl = self.kernel.kl(mean, base.means[rows, step].to(self._device).float(), step)
        self.accelerator.backward(self.config.kl_coef * kl.mean() * len(rows) * share)
        return kl.detach()

    def _mean(self, x: torch.Tensor, step: int, told: Conditioning) -> torch.Tensor:
        return step_mean(
            self.unet, self.kernel, x, step, told, self.table.negative, self.config.guidance_scale
        )

    @property
    def _device(self) -> torch.device:
        return self.kernel.stds.device


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

    The first of `experiences` is fresh, the others are replayed: their ratios are to the policy that acted
        then, and the clip leaves out what
    has moved too far since. `retain` was rolled out by the base, so its stored means are the reference and
    the base is not asked again. The reference of a forget trajectory is the base under the prompt that its
    image came nearest to: what is drawn instead of the concept is held to what the base would draw, where a
    reward alone can be had by images that nobody would; and not only under the prompt, but under the text
    states near it that the policy does worst with, whose direction is a by-product of the backward pass.

    All processes are given the same; each takes its share of every term's rows, and their gradients are added
    up.
    """
    stats, objective = UpdateStats(), Objective(unet, kernel, table, accelerator, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trainable_steps = kernel.num_steps - config.masked_steps
    trained_steps = max(1, round(config.timestep_fraction * trainable_steps))
    sensitivity = kernel.sensitivity()
    scales = (sensitivity[:trainable_steps].median() / sensitivity).tolist()
    terms = [
        (experience, int(step))
        for _ in range(config.inner_epochs)
        for experience in experiences
        for step in torch.randperm(trainable_steps, generator=generator)[:trained_steps]
    ]
    for start in range(0, len(terms), config.accumulation):
        chunk, figures = terms[start : start + config.accumulation], []
        for experience, step in chunk:
            forget = objective.forget(experience, step, scales[step], 1 / len(chunk))
            held, retain_kl = 0, torch.zeros_like(forget.step_kl)
            if config.kl_coef > 0:
                drawn = torch.randint(len(retain), (config.retain_batch_size,), generator=generator)
                held, retain_kl = len(drawn), objective.retain(retain, drawn, step, 1 / len(chunk))
            figures.append(forget.scalars() | {"retain_kl": retain_kl.mean()})
            stats.unet_samples += objective.unet_samples(len(experience.trajectory), held)
        sum_gradients(parameters)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        finite = math.isfinite(norm)
        stats.skipped += not finite
        if (
            finite or accelerator.scaler is not None
        ):  # a gradient scaler leaves such a step out itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found = read(figures)
        for (_, step), term in zip(chunk, found, strict=True):
            stats.by_step.setdefault(step, []).append(
                (term["ratio_mean"], term["ratio_std"], term["clip_fraction"])
            )
        if start == 0:
            stats.first_ratio_deviation = max(term["deviation"] for term in found)
            stats.first_clip_fraction = max(term["clip_fraction"] for term in found)
        stats.grad_norm.append(norm)
        for name in ("clip_fraction", "approx_kl", "step_kl", "anchor_kl", "worst_anchor_kl", "retain_kl"):
            getattr(stats, name).append(fmean(term[name] for term in found))
        if stats.step_kl[-1] > config.target_kl:
            stats.stopped_early = True
            break
    return stats
