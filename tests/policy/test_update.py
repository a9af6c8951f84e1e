from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from small_policy import move, parameters, sample

from pipelines.backbone import Backbone
from pipelines.flow import FlowBackbone
from policy.kernel import ReverseKernel
from policy.lora import base_policy
from policy.policy import Policy
from policy.trajectory import Experience, Trajectory
from policy.update import Objective, UpdateConfig, UpdateStats

FORGET, RETAIN = torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2, 2, 2])
SETTINGS: dict[str, Any] = {
    "clip_range": 0.2,
    "inner_epochs": 1,
    "max_grad_norm": 1.0,
    "kl_coef": 0.0,
    "anchor_kl_coef": 0.0,
    "adversarial_radius": 0.0,
    "target_kl": math.inf,
    "gradient_accumulation_steps": 100,
    "train_timestep_fraction": 1.0,
    "masked_steps": 1,
}
"""The surrogate alone, of all steps but the last, in one optimizer step."""


def update(
    policy: Policy,
    trajectory: Trajectory,
    advantages: torch.Tensor,
    retain: Trajectory,
    optimizer: torch.optim.Optimizer,
    *,
    replayed: Sequence[Experience] = (),
    accelerator: Accelerator | None = None,
    batch_size: int | None = None,
    **changes: Any,
) -> UpdateStats:
    accelerator = accelerator or Accelerator(cpu=True)
    anchor_ids = torch.full((len(trajectory),), len(policy.table.prompts) - 1)
    return replace(policy, batch_size=batch_size or len(trajectory)).update(
        [Experience(trajectory, advantages, anchor_ids), *replayed],
        retain,
        optimizer=accelerator.prepare(optimizer),
        accelerator=accelerator,
        config=UpdateConfig(**{"retain_batch_size": len(retain), **SETTINGS, **changes}),
        generator=torch.Generator().manual_seed(0),
    )


def sgd(policy: Policy, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters(policy), lr=learning_rate)


def take_gradient(policy: Policy) -> torch.Tensor:
    """Of all that is trained, gathered since it was last taken."""
    found = torch.cat([p.grad.flatten() for p in parameters(policy) if p.grad is not None])
    for p in parameters(policy):
        p.grad = None
    return found


@torch.no_grad()
def log_probs(policy: Policy, trajectory: Trajectory) -> torch.Tensor:
    """(B, T) under the policy as it is now."""
    embeds = policy.table.conditioning[trajectory.prompt_ids]
    columns = []
    for step in range(policy.kernel.num_steps):
        mean = policy.mean(trajectory.latents[:, step], step, embeds)
        columns.append(policy.kernel.log_prob(trajectory.latents[:, step + 1], mean, step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_the_ratio_is_exactly_1_until_something_moves(
    policy: Policy, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Over all steps and two batches, in the base's and the storage's precision alike: a learning rate of
    0 keeps it so."""
    base, storage = dtypes
    for p in policy.denoiser.parameters():
        if not p.requires_grad:
            p.data = p.data.to(base)
    assert policy.denoiser.dtype == base
    trajectory = Trajectory.cat([sample(policy, FORGET, seed, storage_dtype=storage) for seed in (1, 2)])
    retain = sample(policy, RETAIN, 3, storage_dtype=storage)
    stats = update(
        policy,
        trajectory,
        torch.randn(8, 5),
        retain,
        sgd(policy, 0.0),
        batch_size=4,
        masked_steps=0,
        gradient_accumulation_steps=2,
    )
    assert (stats.first_ratio_deviation, stats.first_clip_fraction) == (0.0, 0.0)
    asked = update(
        policy,
        trajectory,
        torch.randn(8, 5),
        retain,
        sgd(policy, 0.0),
        batch_size=4,
        anchor_kl_coef=1.0,
        adversarial_radius=0.5,
    )
    assert asked.first_ratio_deviation == 0.0
    assert set(stats.by_step) == set(range(5)) and all(
        row == (1.0, 0.0, 0.0) for rows in stats.by_step.values() for row in rows
    )
    assert all(kl == 0.0 for kl in stats.approx_kl) and all(clip == 0.0 for clip in stats.clip_fraction)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_moves_the_log_prob_of_a_sample_with_its_advantage(policy: Policy, sign: float) -> None:
    trajectory = sample(policy, FORGET[:1])
    update(
        policy,
        trajectory,
        torch.full((1, 5), sign),
        sample(policy, RETAIN),
        sgd(policy, 0.003),
        masked_steps=0,
    )
    change = (log_probs(policy, trajectory) - trajectory.log_probs).sum()
    assert sign * change > 1e-6


def test_the_better_of_two_samples_gains_on_the_worse(policy: Policy) -> None:
    trajectory = sample(policy, FORGET[:2])
    update(
        policy,
        trajectory,
        torch.tensor([[1.0], [-1.0]]).expand(2, 5),
        sample(policy, RETAIN),
        sgd(policy, 0.003),
        masked_steps=0,
    )
    change = (log_probs(policy, trajectory) - trajectory.log_probs).sum(dim=1)
    assert change[0] > change[1]


def test_nothing_moves_without_advantage_and_kl(policy: Policy) -> None:
    before = [p.detach().clone() for p in parameters(policy)]
    optimizer = torch.optim.AdamW(parameters(policy), lr=0.1, weight_decay=0.0)
    update(
        policy,
        sample(policy, FORGET),
        torch.zeros(4, 5),
        sample(policy, RETAIN),
        optimizer,
        gradient_accumulation_steps=1,
    )
    assert all(torch.equal(p, b) for p, b in zip(parameters(policy), before, strict=True))


def test_the_kl_to_the_base_starts_at_zero_and_pulls_a_moved_adapter_back(policy: Policy) -> None:
    trajectory, retain = sample(policy, FORGET), sample(policy, RETAIN)
    at_base = update(policy, trajectory, torch.zeros(4, 5), retain, sgd(policy, 0.0), kl_coef=1.0)
    assert max(at_base.retain_kl) < 1e-9
    move(policy)
    adam = torch.optim.Adam(parameters(policy), lr=0.03)
    stats = update(
        policy,
        trajectory,
        torch.zeros(4, 5),
        retain,
        adam,
        kl_coef=1.0,
        inner_epochs=6,
        gradient_accumulation_steps=4,
    )
    assert stats.retain_kl[0] > 1e-4
    assert sum(stats.retain_kl[-3:]) < 0.5 * sum(stats.retain_kl[:3])


@pytest.mark.parametrize("step", [0, 3])
def test_a_kl_to_the_base_does_not_depend_on_the_noise_that_is_drawn(
    policy: Policy, step: int, tiny_pipeline_dir: Path
) -> None:
    """A change of the network's output stands out more, the less noise there is; the weights undo that."""
    states, rows = sample(policy, FORGET, seed=3), torch.arange(4)
    config = UpdateConfig(**{**SETTINGS, "kl_coef": 1.0, "anchor_kl_coef": 1.0, "adversarial_radius": 0.5})
    scheduler = DDIMScheduler.from_pretrained(tiny_pipeline_dir, subfolder="scheduler")
    move(policy)
    gradients = []
    for eta in (0.4, 1.0):
        noisy = replace(policy, kernel=ReverseKernel.from_scheduler(scheduler, 5, eta))
        with torch.no_grad(), base_policy(noisy.denoiser):
            prompts = noisy.table.conditioning[states.prompt_ids]
            means = [noisy.mean(states.latents[:, i], i, prompts) for i in range(5)]
        base = replace(states, means=torch.stack(means, dim=1))
        objective = Objective(noisy, Accelerator(cpu=True), config)
        experience = Experience(base, torch.zeros(4, 5), torch.full((4,), 2))
        objective.retain(base, rows, step, 1.0)
        retain = take_gradient(policy)
        objective.forget(experience, step, 1.0)
        gradients.append((retain, take_gradient(policy)))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert all(found.abs().max() > 1e-4 for found in gradients[0])


def test_the_kl_to_the_anchors_lets_alone_what_is_replaced(policy: Policy) -> None:
    states = sample(policy, FORGET, seed=3)
    settings = {**SETTINGS, "kl_coef": 0.0, "anchor_kl_coef": 1.0, "adversarial_radius": 0.5}

    def gradient(shortfall: float, **changes: bool) -> torch.Tensor:
        objective = Objective(policy, Accelerator(cpu=True), UpdateConfig(**{**settings, **changes}))
        left = torch.full((4,), shortfall)
        experience = Experience(states, torch.zeros(4, 5), torch.full((4,), 2), shortfall=left)
        objective.forget(experience, 1, 1.0)
        return take_gradient(policy)

    move(policy)
    whole = gradient(1.0)
    torch.testing.assert_close(gradient(0.25), whole / 4)
    torch.testing.assert_close(gradient(0.25, weigh_anchor_kl=False), whole)
    assert whole.abs().max() > 1e-4 and not gradient(0.0).any()


def test_the_kls_of_a_flow_count_twice(policy: Policy) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    counted = {
        Backbone: [
            ReverseKernel.from_scheduler(DDIMScheduler(clip_sample=False), 8, eta) for eta in (0.5, 1.0)
        ],
        FlowBackbone: [ReverseKernel.from_flow(scheduler, eta) for eta in (0.5, 1.0)],
    }
    for cls, kernels in counted.items():
        for kernel in kernels:
            acting = replace(policy, kernel=kernel, backbone=cls(policy.backbone.pipe))
            weights = Objective(acting, Accelerator(cpu=True), UpdateConfig()).kl_weights
            # What a change of the network's output by one is counted at, in every step.
            x, output, change = torch.zeros(3, 1, 4, 8, 8).unbind()
            change = change + 1
            for step in range(8):
                moved = kernel.mean(output + change, x, step), kernel.mean(output, x, step)
                counts = weights[step] * kernel.kl(*moved, step).item()
                usual = 0.77**2 * (1 if cls is Backbone else 2) / 2
                assert counts.item() == pytest.approx(usual, rel=0.02), (cls, step)


def test_only_the_adapter_moves(policy: Policy) -> None:
    before = {name: p.detach().clone() for name, p in policy.denoiser.named_parameters()}
    update(
        policy,
        sample(policy, FORGET),
        torch.randn(4, 5),
        sample(policy, RETAIN),
        sgd(policy, 0.1),
        kl_coef=1.0,
    )
    moved = {name for name, p in policy.denoiser.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert all(p.grad is None for p in policy.denoiser.parameters())


def test_masked_steps_are_never_trained_and_a_fraction_is_a_fraction(policy: Policy) -> None:
    trajectory, retain, advantages = sample(policy, FORGET), sample(policy, RETAIN), torch.randn(4, 5)
    stats = update(policy, trajectory, advantages, retain, sgd(policy, 0.0), masked_steps=2, inner_epochs=3)
    assert {step: len(rows) for step, rows in stats.by_step.items()} == {0: 3, 1: 3, 2: 3}
    stats = update(
        policy, trajectory, advantages, retain, sgd(policy, 0.0), batch_size=2, train_timestep_fraction=0.5
    )
    assert sum(len(rows) for rows in stats.by_step.values()) == 2  # two of four steps, of all trajectories


def test_terms_are_gathered_into_optimizer_steps_and_counted(policy: Policy) -> None:
    trajectory, retain = sample(policy, FORGET), sample(policy, RETAIN)
    stats = update(
        policy,
        trajectory,
        torch.randn(4, 5),
        retain,
        sgd(policy, 0.0),
        kl_coef=1.0,
        gradient_accumulation_steps=3,
        inner_epochs=2,
    )
    assert [
        len(values) for values in (stats.grad_norm, stats.approx_kl, stats.clip_fraction, stats.retain_kl)
    ] == [3] * 4  # 8 terms
    assert stats.unet_samples == 8 * (2 * 4 + 2 * 4)


def test_the_gradient_is_clipped_and_its_norm_before_that_is_kept(policy: Policy) -> None:
    before = [p.detach().clone() for p in parameters(policy)]
    stats = update(
        policy,
        sample(policy, FORGET),
        torch.randn(4, 5),
        sample(policy, RETAIN),
        sgd(policy, 1.0),
        max_grad_norm=1e-3,
    )
    moved = math.sqrt(
        sum((p - b).square().sum().item() for p, b in zip(parameters(policy), before, strict=True))
    )
    assert stats.grad_norm[0] > 2e-3
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_the_inner_loop_stops_once_the_policy_has_gone_too_far(policy: Policy) -> None:
    trajectory, retain = sample(policy, FORGET), sample(policy, RETAIN)
    stats = update(
        policy,
        trajectory,
        torch.randn(4, 5),
        retain,
        sgd(policy, 5.0),
        gradient_accumulation_steps=1,
        inner_epochs=20,
        target_kl=1e-3,
    )
    assert stats.stopped_early and len(stats.approx_kl) < 80
    assert stats.approx_kl[-1] > 1e-3 and all(kl <= 1e-3 for kl in stats.approx_kl[:-1])


def test_a_gradient_that_is_no_number_is_skipped(policy: Policy) -> None:
    before = [p.detach().clone() for p in parameters(policy)]
    stats = update(
        policy,
        sample(policy, FORGET),
        torch.full((4, 5), math.nan),
        sample(policy, RETAIN),
        sgd(policy, 0.1),
        gradient_accumulation_steps=2,
    )
    assert stats.skipped == len(stats.grad_norm) > 0
    assert all(torch.equal(p, b) for p, b in zip(parameters(policy), before, strict=True))


def test_the_anchor_kl_pulls_forget_states_to_the_base_under_the_anchor_prompt(policy: Policy) -> None:
    trajectory = sample(policy, FORGET, seed=3)
    advantages, trained = torch.zeros_like(trajectory.log_probs), parameters(policy)
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    kls = [
        sum(update(policy, trajectory, advantages, trajectory, optimizer, anchor_kl_coef=1.0).anchor_kl)
        for _ in range(8)
    ]
    assert kls[0] > 0 and kls[-1] < 0.9 * kls[0]
    assert all(p.requires_grad for p in trained)  # though the base was asked in between


def test_around_a_prompt_the_kl_is_larger_and_comes_down_where_it_is_trained(policy: Policy) -> None:
    """Among as many gradients of the same states: what one pass less of the UNet learns leaves the text
    around the prompt where it was."""
    trajectory, start = sample(policy, FORGET, seed=3), [p.detach().clone() for p in parameters(policy)]
    nothing = torch.zeros_like(trajectory.log_probs)

    def around(radius: float) -> tuple[UpdateStats, UpdateStats, float]:
        """Statistics of the first update with this radius, of the last, and the KL around the prompts
        after it."""
        with torch.no_grad():
            for p, value in zip(parameters(policy), start, strict=True):
                p.copy_(value)
        optimizer = torch.optim.Adam(parameters(policy), lr=1e-2)
        stats = [
            update(
                policy,
                trajectory,
                nothing,
                trajectory,
                optimizer,
                anchor_kl_coef=1.0,
                adversarial_radius=radius,
            )
            for _ in range(5)
        ]
        after = update(
            policy,
            trajectory,
            nothing,
            trajectory,
            sgd(policy, 0.0),
            anchor_kl_coef=1.0,
            adversarial_radius=0.5,
        )
        return stats[0], stats[-1], sum(after.worst_anchor_kl)

    first, last, trained = around(0.5)
    assert (
        first.worst_anchor_kl[0] > first.anchor_kl[0] > 0
        and last.worst_anchor_kl[0] < first.worst_anchor_kl[0]
    )
    assert first.unet_samples == 4 * (
        2 * 4 * 3
    )  # every state under its prompt, around it, and under its anchor
    plain, _, left = around(0.0)
    assert set(plain.worst_anchor_kl) == {0.0} and trained < left


def test_replayed_trajectories_are_weighed_by_what_the_policy_has_become(policy: Policy) -> None:
    old = sample(policy, FORGET, seed=1)
    move(policy, 0.05)
    fresh, retain = sample(policy, FORGET, seed=2), sample(policy, RETAIN)
    nothing, anchors = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    stats = update(
        policy,
        fresh,
        nothing,
        retain,
        sgd(policy, 0.0),
        replayed=[Experience(old, nothing, anchors)],
        gradient_accumulation_steps=4,
        masked_steps=1,
    )
    assert len(stats.grad_norm) == 2  # four trained steps of the fresh ones, then four of the replayed
    assert stats.first_ratio_deviation == 0.0 and stats.approx_kl[0] == 0.0 and stats.approx_kl[1] > 0.0


def test_replayed_advantages_move_the_policy_too(policy: Policy) -> None:
    old, retain = sample(policy, FORGET[:1], seed=1), sample(policy, RETAIN)
    replayed = Experience(old, torch.ones(1, 5), torch.zeros(1, dtype=torch.int64))
    update(
        policy,
        sample(policy, FORGET[:1], seed=2),
        torch.zeros(1, 5),
        retain,
        sgd(policy, 0.003),
        replayed=[replayed],
        masked_steps=0,
    )
    assert (log_probs(policy, old) - old.log_probs).sum() > 1e-6


@pytest.mark.parametrize("by_gradients", [False, True], ids=["likelihood ratio", "action gradients"])
def test_how_many_go_through_the_unet_together_does_not_change_the_update(
    policy: Policy, by_gradients: bool
) -> None:
    """Five trajectories and three retain states, in passes of all, of two and of one: the same optimizer
    steps, gradients and metrics."""
    trajectory = sample(policy, torch.tensor([0, 1, 0, 1, 1]))
    retain = sample(policy, torch.tensor([2, 2, 2, 2]), seed=1)
    move(policy, 0.1)
    start = [p.detach().clone() for p in parameters(policy)]
    advantages, gradients = torch.randn(5, 5), 0.3 * torch.randn_like(trajectory.means)
    anchors = torch.full((5,), 2)
    config = UpdateConfig(
        clip_range=0.2,
        kl_coef=2.0,
        anchor_kl_coef=1.0,
        adversarial_radius=0.5,
        target_kl=math.inf,
        inner_epochs=1,
        retain_batch_size=3,
        gradient_accumulation_steps=2,
        train_timestep_fraction=0.75,
        masked_steps=1,
        max_grad_norm=1.0,
    )

    def learn(batch_size: int) -> tuple[list[torch.Tensor], UpdateStats]:
        with torch.no_grad():
            for p, value in zip(parameters(policy), start, strict=True):
                p.copy_(value)
        accelerator = Accelerator(cpu=True)
        stats = replace(policy, batch_size=batch_size).update(
            [Experience(trajectory, advantages, anchors, gradients if by_gradients else None)],
            retain,
            optimizer=accelerator.prepare(sgd(policy, 0.05)),
            accelerator=accelerator,
            config=config,
            generator=torch.Generator().manual_seed(0),
        )
        return [p.detach().clone() for p in parameters(policy)], stats

    whole, stats = learn(5)
    assert (
        len(stats.grad_norm) == 2
        and min(stats.grad_norm) > 1e-3
        and min(stats.retain_kl) > 0
        and any(0 < clipped < 1 for clipped in stats.clip_fraction)
    )
    assert max((p - value).abs().max().item() for p, value in zip(whole, start, strict=True)) > 1e-3
    for batch_size in (2, 1):
        parts, others = learn(batch_size)
        for p, q in zip(whole, parts, strict=True):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)
        for name in ("grad_norm", "clip_fraction", "approx_kl", "step_kl", "retain_kl", "anchor_kl"):
            assert getattr(others, name) == pytest.approx(getattr(stats, name), rel=1e-3, abs=1e-7)
        assert others.by_step.keys() == stats.by_step.keys() and others.unet_samples == stats.unet_samples
        for step, rows in stats.by_step.items():
            assert np.allclose(others.by_step[step], rows, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**127], ids=["none", "usual", "one that overflows"])
def test_a_gradient_scaler_changes_no_step_and_leaves_out_what_overflows(
    policy: Policy, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate has one on a GPU in half precision: through both KLs, the worst case and the clip of
    the gradient's norm."""
    trajectory, retain, advantages = (
        sample(policy, FORGET, 1),
        sample(policy, RETAIN, 3),
        torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),
    )
    terms = {"kl_coef": 1.0, "anchor_kl_coef": 1.0, "adversarial_radius": 0.5}
    before = [p.detach().clone() for p in parameters(policy)]
    expected = update(policy, trajectory, advantages, retain, sgd(policy, 0.1), **terms)
    moved = [p.detach().clone() for p in parameters(policy)]
    with torch.no_grad():
        for p, start in zip(parameters(policy), before, strict=True):
            p.copy_(start)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
    stats = update(policy, trajectory, advantages, retain, sgd(policy, 0.1), accelerator=accelerator, **terms)
    overflows = scale > 2.0**100
    assert stats.skipped == overflows and expected.skipped == 0 and stats.first_ratio_deviation == 0
    for p, start, end in zip(parameters(policy), before, moved, strict=True):
        torch.testing.assert_close(p.detach(), start if overflows else end)
    assert any(not torch.equal(start, end) for start, end in zip(before, moved, strict=True))
    assert (accelerator.scaler.get_scale() < scale) == overflows
    if not overflows:
        assert stats.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
