from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from policy.kernel import ReverseKernel
from policy.lora import ADAPTER, add_lora, base_policy, is_identity, lora_state
from policy.policy import Policy
from policy.warm_start import LEAST, closed_form, text_layers, warm_start

PROMPTS = ["a red cat", "a red dog", "a tree", "two houses"]
CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def policy_of(directory: Path, *, rank: int = 8, alpha: float = 4.0, targets: tuple[str, ...]) -> Policy:
    backbone = Backbone.of(load_pipeline(directory))
    torch.manual_seed(0)
    add_lora(backbone.denoiser, rank, alpha, targets)
    kernel = ReverseKernel.of(backbone, 5, 1.0)
    return Policy(backbone, kernel, backbone.prompt_table(PROMPTS), guidance_scale=3.0, batch_size=4)


@torch.no_grad()
def means(policy: Policy, row: int) -> torch.Tensor:
    """What the policy makes of four noises under a prompt."""
    x = torch.randn(4, *policy.backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.mean(x, 0, policy.table.conditioning[torch.full((4,), row)])


def test_the_closed_form_brings_the_concept_to_its_anchor_and_leaves_what_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    forget, anchors, retain = basis[:3], basis[3:6], basis[6:]
    change = closed_form((anchors - forget) @ weight.T, forget, retain, damping=1e-9)
    assert change.shape == (6, 12) and change.dtype == torch.float64
    torch.testing.assert_close(forget @ (weight + change).T, anchors @ weight.T)
    torch.testing.assert_close(retain @ change.T, torch.zeros(6, 6, dtype=torch.float64))


def test_what_is_kept_counts_more_than_what_is_brought_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    retain, anchor = torch.randn(40, 8, generator=generator), torch.randn(1, 8, generator=generator)
    forget = retain[:1] + 0.5 * torch.randn(1, 8, generator=generator)
    change, even = (closed_form(anchor - forget, forget, retain, **given) for given in ({}, {"keeping": 1.0}))
    lost, lost_even = ((retain.double() @ of.T).norm() for of in (change, even))
    assert 0 < lost < 0.7 * lost_even


def test_the_policy_draws_the_anchor_in_the_concepts_place(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir, targets=CROSS_ATTENTION)
    base = [means(policy, row) for row in range(4)]
    assert warm_start(policy, {0: 1}, [2, 3])
    moved = [means(policy, row) for row in range(4)]
    apart = (base[0] - base[1]).norm()
    assert (moved[0] - base[1]).norm() < 0.5 * apart
    for kept in (2, 3):
        assert (moved[kept] - base[kept]).norm() < 0.5 * apart
    with base_policy(policy.denoiser):
        assert all(torch.equal(means(policy, row), base[row]) for row in range(4))


def test_the_scale_of_the_adapter_makes_no_difference(tiny_pipeline_dir: Path) -> None:
    found = []
    for alpha in (1.0, 16.0):
        policy = policy_of(tiny_pipeline_dir, alpha=alpha, targets=CROSS_ATTENTION)
        warm_start(policy, {0: 1}, [2, 3])
        found.append(means(policy, 0))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_directions_that_are_left_out_change_nothing_and_can_learn(tiny_pipeline_dir: Path) -> None:
    """Of rank 16, the strongest directions alone are taken; the others keep their first weights."""
    policy = policy_of(tiny_pipeline_dir, rank=16, targets=CROSS_ATTENTION)
    before = lora_state(policy.denoiser)
    warm_start(policy, {0: 1}, [2, 3])
    for name, layer in policy.denoiser.named_modules():
        if layer not in list(text_layers(policy.denoiser)):
            continue
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        sizes = up.norm(dim=0) * down.norm(dim=1)
        taken = int((sizes > 0).sum())
        assert 1 <= taken < 16 and sizes[:taken].min() > 0.9 * LEAST * sizes.max()
        assert not up[:, taken:].any()
        assert torch.equal(down[taken:], before[f"{name}.lora_A.{ADAPTER}.weight"][taken:])


def test_an_adapter_that_reads_no_text_begins_at_the_base(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir, targets=("attn1.to_k",))
    assert not warm_start(policy, {0: 1}, [2, 3])
    assert is_identity(lora_state(policy.denoiser))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_transformer_begins_at_the_base(flow_dirs: dict[str, Path], name: str) -> None:
    directory = flow_dirs[name]
    backbone = Backbone.of(load_pipeline(directory))
    policy = policy_of(directory, targets=tuple(backbone.lora_targets))
    assert not warm_start(replace(policy, batch_size=2), {0: 1}, [2, 3])
    assert is_identity(lora_state(policy.denoiser))
