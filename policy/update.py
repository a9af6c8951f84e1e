"""One policy update: surrogate and KL to the base under the anchors on forget trajectories, KL to the base
on retain trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from common.flags import flag
from common.processes import all_rows, own_batches, sum_gradients
from policy.adversary import worst_case
from policy.surrogate import RatioStats, clipped_surrogate, pathwise_surrogate
from policy.trajectory import Experience, Trajectory

if TYPE_CHECKING:
    from policy.policy import Policy


@dataclass(frozen=True)
class UpdateConfig:
    """Policy update.

    How the policy is moved by one batch of trajectories. A term is one denoising step of all trajectories of
    an experience, and the retain states that go with it.
    """

    clip_range: float = flag(
        0.2,
        at_least=0,
        help="Clip of the importance ratio, in units of a step's own noise; with --advantage pathwise, of how far "
        "a mean may move.",
    )
    inner_epochs: int = flag(1, at_least=1, help="Passes over an iteration's trajectories.")
    replay_iterations: int = flag(
        0,
        at_least=0,
        help="Also train on trajectories of the N previous iterations (off-policy, importance-weighted).",
    )
    target_kl: float = flag(
        0.02,
        at_least=0,
        help="Stop an iteration's updates once the KL to the acting policy exceeds this.",
    )
    train_timestep_fraction: float = flag(
        0.5,
        above=0,
        at_most=1,
        help="Fraction of the timesteps that is trained, drawn anew in every iteration.",
    )
    masked_steps: int = flag(
        2,
        at_least=0,
        help="Number of the last denoising steps that are never trained: their noise is small and dominates the "
        "ratio.",
    )
    gradient_accumulation_steps: int = flag(
        2, at_least=1, help="Timesteps in an optimizer step, each of all trajectories."
    )
    max_grad_norm: float = flag(1.0, above=0, help="Norm that the gradient is clipped to.")
    kl_coef: float = flag(20.0, at_least=0, help="Weight of the KL to the base on retain prompts.")
    retain_kl_target: float | None = flag(
        None,
        at_least=0,
        help="Adapt that weight to this KL: double it above the target, halve it far below. Default: fixed.",
    )
    retain_batch_size: int = flag(
        16,
        at_least=1,
        help="Retain states in every term of an update, and retain images judged in an iteration.",
    )
    anchor_kl_coef: float = flag(
        1.0,
        at_least=0,
        help="Weight of the KL to the base under the nearest anchor, on forget prompts.",
    )
    weigh_anchor_kl: bool = flag(
        True,
        negatable=True,
        help="Weigh that KL by how much of the way to its anchors each image has left, so that what is replaced is "
        "let alone.",
    )
    adversarial_radius: float = flag(
        0.5,
        at_least=0,
        help="Take that KL under the worst text within this fraction of the way from prompt to anchor as well, "
        "against searched words. 0 leaves it out, which saves a fifth of the time.",
    )


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
class ForgetStats:
    """Of B trajectories at one step, all processes' and detached.

    Attributes:
        change: (B,) what their log-densities have gained on those of the policy that acted; 0 before anything
            has moved.
        ratios: how far they have moved, in the surrogate's units.
        step_kl: (B,) KL to the policy that acted.
        anchor_kl, worst_anchor_kl: (B,) KL to the base under the anchor, under the prompt and under the worst
            text near it; 0 where it is not asked for.
    """

    change: torch.Tensor
    ratios: RatioStats
    step_kl: torch.Tensor
    anchor_kl: torch.Tensor
    worst_anchor_kl: torch.Tensor

    def scalars(self) -> dict[str, torch.Tensor]:
        """One number for each diagnostic of a term, still on the device."""
        return {
            "deviation": (self.change.exp() - 1).abs().max(),
            "ratio_mean": self.ratios.ratio_mean,
            "ratio_std": self.ratios.ratio_std,
            "clip_fraction": self.ratios.clip_fraction,
            "approx_kl": self.ratios.approx_kl,
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
    adapter's, and returns metrics.

    A gradient is that of this process's rows, metrics are all processes'. The weights of steps undo what the
    sampler makes of a change of the network's output, which no loss should depend on.
    """

    policy: Policy
    accelerator: Accelerator
    config: UpdateConfig

    @property
    def trainable_steps(self) -> int:
        """All but the masked ones."""
        return self.policy.kernel.num_steps - self.config.masked_steps

    @cached_property
    def surrogate_weights(self) -> torch.Tensor:
        """(T,) of each step's surrogate, whose gradient grows with the step's sensitivity."""
        sensitivity = self.policy.kernel.sensitivity()
        return sensitivity[: self.trainable_steps].median() / sensitivity

    @cached_property
    def kl_weights(self) -> torch.Tensor:
        """(T,) of each step's KLs to the base, which grow with the square of its sensitivity."""
        return (self.policy.backbone.kl_sensitivity / self.policy.kernel.sensitivity()) ** 2

    @property
    def anchored(self) -> bool:
        """Whether forget states are held to the base under the anchor."""
        return self.config.anchor_kl_coef > 0

    @property
    def adversarial(self) -> bool:
        """Whether they are under the worst text near the prompt, too."""
        return self.anchored and self.config.adversarial_radius > 0

    def unet_samples(self, forget: int, retain: int) -> int:
        """Samples that the network is given for so many forget and retain states."""
        return self.policy.branches * (forget * (1 + self.anchored + self.adversarial) + retain)

    def forget(self, experience: Experience, step: int, share: float) -> ForgetStats:
        """The surrogate and the KLs to the anchor at `step` of all trajectories. `share` is that of this call
        in the optimizer step."""
        count = len(experience.trajectory)
        rows = own_batches(count, self.policy.batch_size)
        mine = torch.cat([self._forget_rows(experience, part, step, share / count) for part in rows])
        change, log_ratio, outside, step_kl, anchor_kl, worst_kl = all_rows(mine, count).unbind(dim=1)
        return ForgetStats(change, RatioStats(log_ratio, outside.bool()), step_kl, anchor_kl, worst_kl)

    def retain(self, base: Trajectory, rows: torch.Tensor, step: int, share: float) -> torch.Tensor:
        """(B,) the KL to the base at `step` of its own trajectories `rows` (B,)."""
        mine = torch.cat(
            [
                self._retain_rows(base, rows[part], step, share / len(rows))
                for part in own_batches(len(rows), self.policy.batch_size)
            ]
        )
        return all_rows(mine, len(rows))

    def left(self, experience: Experience, rows: slice) -> torch.Tensor | float:
        """(b,) by what the KLs to the anchors are weighed, or 1."""
        if experience.shortfall is None or not self.config.weigh_anchor_kl:
            return 1.0
        return experience.shortfall[rows]

    def _forget_rows(self, experience: Experience, rows: slice, step: int, share: float) -> torch.Tensor:
        """(b, 6): the columns of `ForgetStats`. `share` is that of one row."""
        config, policy, kernel = self.config, self.policy, self.policy.kernel
        batch, device = experience.trajectory[rows], kernel.stds.device
        x, action = (batch.latents[:, index].to(device) for index in (step, step + 1))
        old_mean, old_log_prob = batch.means[:, step].float().to(device), batch.log_probs[:, step]
        prompts = policy.current.conditioning[batch.prompt_ids]
        anchors = policy.table.conditioning[experience.anchor_ids[rows]]
        if self.anchored:
            with policy.base(), torch.no_grad():
                reference = policy.mean(x, step, anchors)
        if self.adversarial:
            prompts = replace(prompts, states=prompts.states.float().requires_grad_())
        mean = policy.mean(x, step, prompts)
        log_prob = kernel.log_prob(action, mean, step)
        if experience.action_gradients is None:
            advantage, dim = experience.advantages[rows, step], x[0].numel()
            surrogate = clipped_surrogate(log_prob, old_log_prob, advantage, config.clip_range, dim)
        else:
            surrogate = pathwise_surrogate(
                mean,
                old_mean,
                experience.action_gradients[rows, step].to(device),
                log_prob=log_prob,
                old_log_prob=old_log_prob,
                std=kernel.stds[step],
                clip_range=config.clip_range,
            )
        loss = self.surrogate_weights[step] * surrogate.loss
        anchor_weight = config.anchor_kl_coef * self.kl_weights[step] * self.left(experience, rows)
        anchor_kl = worst_kl = torch.zeros_like(old_log_prob)
        if self.anchored:
            anchor_kl = kernel.kl(mean, reference, step)
            loss = loss + (anchor_weight * anchor_kl).mean()
        self.accelerator.backward(loss * len(batch) * share)
        if self.adversarial:
            assert prompts.states.grad is not None
            apart = anchors.states - policy.table.conditioning[batch.prompt_ids].states
            states = worst_case(prompts.states, prompts.states.grad, apart, config.adversarial_radius)
            worst_kl = kernel.kl(policy.mean(x, step, replace(prompts, states=states)), reference, step)
            self.accelerator.backward((anchor_weight * worst_kl).mean() * len(batch) * share)
        step_kl = kernel.kl(mean.detach(), old_mean, step)
        columns = (
            log_prob - old_log_prob,
            surrogate.log_ratio,
            surrogate.outside.float(),
            step_kl,
            anchor_kl,
            worst_kl,
        )
        return torch.stack([column.detach() for column in columns], dim=1)

    def _retain_rows(self, base: Trajectory, rows: torch.Tensor, step: int, share: float) -> torch.Tensor:
        policy, kernel, device = self.policy, self.policy.kernel, self.policy.kernel.stds.device
        prompts = policy.current.conditioning[base.prompt_ids[rows]]
        mean = policy.mean(base.latents[rows, step].to(device), step, prompts)
        kl = kernel.kl(mean, base.means[rows, step].to(device).float(), step)
        weight = self.config.kl_coef * self.kl_weights[step]
        self.accelerator.backward(weight * kl.mean() * len(rows) * share)
        return kl.detach()


def update_policy(
    policy: Policy,
    experiences: list[Experience],
    retain: Trajectory,
    *,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    config: UpdateConfig,
    generator: torch.Generator,
) -> UpdateStats:
    """Move the adapter along the advantages of the experiences, held to the base's means on `retain`.

    The first of `experiences` is fresh, the others are replayed: their ratios are to the policy that acted
    then, and the clip leaves out what has moved too far since. `retain` was rolled out by the base, so its
    stored means are the reference and the base is not asked again. The reference of a forget trajectory is
    the base under the prompt that its image came nearest to: what is drawn instead of the concept is held to
    what the base would draw, where a reward alone can be had by images that nobody would. It is held so under
    the prompt and under the text states near it that the policy does worst with, whose direction is a
    by-product of the backward pass.

    All processes are given the same; each takes its share of every term's rows, and their gradients are added
    up.
    """
    stats, objective = UpdateStats(), Objective(policy, accelerator, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained_steps = max(1, round(config.train_timestep_fraction * objective.trainable_steps))
    terms = [
        (experience, int(step))
        for _ in range(config.inner_epochs)
        for experience in experiences
        for step in torch.randperm(objective.trainable_steps, generator=generator)[:trained_steps]
    ]
    for start in range(0, len(terms), config.gradient_accumulation_steps):
        chunk, metrics = terms[start : start + config.gradient_accumulation_steps], []
        for experience, step in chunk:
            forget = objective.forget(experience, step, 1 / len(chunk))
            held, retain_kl = 0, torch.zeros_like(forget.step_kl)
            if config.kl_coef > 0:
                drawn = torch.randint(len(retain), (config.retain_batch_size,), generator=generator)
                held, retain_kl = len(drawn), objective.retain(retain, drawn, step, 1 / len(chunk))
            metrics.append(forget.scalars() | {"retain_kl": retain_kl.mean()})
            stats.unet_samples += objective.unet_samples(len(experience.trajectory), held)
        sum_gradients(parameters)
        norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
        finite = math.isfinite(norm)
        stats.skipped += not finite
        # A gradient scaler leaves such a step out itself, and lowers its scale.
        if finite or accelerator.scaler is not None:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found = read(metrics)
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
