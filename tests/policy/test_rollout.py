from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_policy import move, parameters, sample

from policy.lora import base_policy
from policy.policy import Policy
from policy.trajectory import Trajectory

IDS = torch.tensor([0, 1, 0, 2])


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("storage_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moved", [False, True])
def test_recomputed_log_probs_are_the_stored_ones_bit_for_bit(
    policy: Policy, guidance_scale: float, storage_dtype: torch.dtype, moved: bool
) -> None:
    if moved:
        move(policy)
    policy, generator = replace(policy, guidance_scale=guidance_scale), torch.Generator().manual_seed(0)
    batches = [policy.rollout(ids, generator, storage_dtype=storage_dtype) for ids in (IDS, IDS.flip(0))]
    joined = Trajectory.cat(batches)
    assert joined.latents.dtype == storage_dtype and joined.log_probs.dtype == torch.float32
    for rows in (slice(0, 4), slice(4, 8)):
        batch = joined[rows]
        for step in range(policy.kernel.num_steps):
            embeds = policy.table.conditioning[batch.prompt_ids]
            mean = policy.mean(batch.latents[:, step], step, embeds)
            log_prob = policy.kernel.log_prob(batch.latents[:, step + 1], mean, step)
            assert log_prob.requires_grad
            assert torch.equal(log_prob.detach(), batch.log_probs[:, step])


def test_shapes_and_what_they_hold(policy: Policy) -> None:
    trajectory = sample(policy, IDS)
    steps = policy.kernel.num_steps
    assert trajectory.latents.shape == (4, steps + 1, 4, 8, 8) and trajectory.means.shape == (
        4,
        steps,
        4,
        8,
        8,
    )
    assert trajectory.log_probs.shape == (4, steps) and len(trajectory) == 4 and trajectory.num_steps == steps
    assert torch.equal(trajectory.timesteps, policy.kernel.timesteps) and torch.equal(
        trajectory.prompt_ids, IDS
    )
    assert not trajectory.latents.requires_grad
    noise = (trajectory.latents[:, 1:] - trajectory.means) / policy.kernel.stds[:, None, None, None]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    assert abs(trajectory.latents[:, 0].std() - 1) < 0.1


def test_a_rollout_is_a_function_of_its_generator(policy: Policy) -> None:
    first, again, other = (
        sample(policy, IDS, seed=3),
        sample(policy, IDS, seed=3),
        sample(policy, IDS, seed=4),
    )
    assert torch.equal(first.latents, again.latents) and torch.equal(first.log_probs, again.log_probs)
    assert not torch.equal(first.latents[:, 0], other.latents[:, 0])
    assert not torch.equal(first.latents[0], first.latents[2])  # the same prompt twice is two images


@pytest.mark.parametrize(("guidance_scale", "samples"), [(1.0, 4), (5.0, 8)])
def test_a_step_is_one_pass_of_the_unet(policy: Policy, guidance_scale: float, samples: int) -> None:
    batches: list[int] = []
    handle = policy.denoiser.register_forward_hook(
        lambda module, inputs, output: batches.append(len(inputs[0]))
    )
    sample(policy, IDS, guidance_scale=guidance_scale)
    handle.remove()
    assert batches == [samples] * policy.kernel.num_steps


def test_guidance_goes_from_the_empty_prompt_through_the_prompt(policy: Policy) -> None:
    x, embeds, negative = torch.randn(2, 4, 8, 8), policy.table.conditioning[:2], policy.table.negative
    with torch.no_grad():
        without, with_prompt, guided = (
            replace(policy, guidance_scale=scale).mean(x, 1, prompts)
            for prompts, scale in ((negative.expand(2), 1.0), (embeds, 1.0), (embeds, 4.0))
        )
    assert (with_prompt - without).abs().max() > 1e-4
    torch.testing.assert_close(guided, without + 4.0 * (with_prompt - without), atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_adapter_alone(policy: Policy) -> None:
    trajectory = sample(policy, IDS)
    embeds = policy.table.conditioning[trajectory.prompt_ids]
    mean = policy.mean(trajectory.latents[:, 1], 1, embeds)
    policy.kernel.log_prob(trajectory.latents[:, 2], mean, 1).sum().backward()
    graded = {
        name
        for name, p in policy.denoiser.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    # While B is zero A has no gradient: all B matrices and nothing else.
    assert graded == {name for name, _ in policy.denoiser.named_parameters() if "lora_B" in name}


def test_kl_to_the_base_is_zero_before_and_has_a_gradient_once_the_adapter_moved(policy: Policy) -> None:
    trajectory = sample(policy, IDS)
    embeds = policy.table.conditioning[trajectory.prompt_ids]

    def mean(step: int) -> torch.Tensor:
        return policy.mean(trajectory.latents[:, step], step, embeds)

    with base_policy(policy.denoiser), torch.no_grad():
        reference = [mean(step) for step in range(policy.kernel.num_steps)]
    for step, base in enumerate(reference):
        assert torch.equal(base, trajectory.means[:, step])
        assert torch.equal(policy.kernel.kl(mean(step), base, step).detach(), torch.zeros(4))
    move(policy)
    kl = policy.kernel.kl(mean(2), reference[2], 2)
    assert (kl > 0).all()
    kl.mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters(policy))


def test_cat_and_indexing_keep_rows_together(policy: Policy) -> None:
    first, second = sample(policy, IDS, seed=1), sample(policy, IDS[:2], seed=2)
    joined = Trajectory.cat([first, second])
    assert len(joined) == 6 and torch.equal(joined.timesteps, first.timesteps)
    for part, rows in ((first, slice(0, 4)), (second, slice(4, 6))):
        for name in ("latents", "means", "log_probs", "prompt_ids"):
            assert torch.equal(getattr(joined[rows], name), getattr(part, name))
    picked = joined[torch.tensor([5, 0])]
    assert torch.equal(picked.latents, torch.stack([second.latents[1], first.latents[0]]))
    assert torch.equal(joined[joined.prompt_ids == 0].prompt_ids, torch.zeros(3, dtype=torch.int64))


def test_pooled_text_is_the_mean_over_tokens(policy: Policy) -> None:
    torch.testing.assert_close(policy.table.pooled, policy.table.conditioning.states.sum(1) / 7)


def test_how_many_are_sampled_together_does_not_change_what_is_sampled(policy: Policy) -> None:
    move(policy)
    whole = sample(policy, IDS, seed=5)
    for batch_size in (3, 1):
        generator = torch.Generator().manual_seed(5)
        parts = replace(policy, batch_size=batch_size).rollout(IDS, generator)
        assert torch.equal(parts.latents[:, 0], whole.latents[:, 0]) and torch.equal(
            parts.prompt_ids, whole.prompt_ids
        )
        torch.testing.assert_close(parts.latents, whole.latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-4, rtol=1e-4)


def test_a_share_of_a_rollout_is_that_share_of_the_whole(policy: Policy) -> None:
    whole, share = (
        policy.rollout(IDS, torch.Generator().manual_seed(4), rows=rows)
        for rows in (slice(None), slice(1, 3))
    )
    assert len(share) == 2 and share.prompt_ids.tolist() == IDS[1:3].tolist()
    assert torch.equal(share.latents[:, 0], whole.latents[1:3, 0])
    assert torch.allclose(share.latents, whole.latents[1:3], atol=1e-5)
