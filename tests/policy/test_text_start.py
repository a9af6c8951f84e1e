"""A start in the text encoder, on every kind of pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from policy.kernel import ReverseKernel
from policy.lora import TEXT_LAYERS, add_lora, is_identity
from policy.policy import Policy
from policy.text_start import FORGET, KEEPING, KEPT, Distances, drawn, flat, goals_of, in_float32, text_start

PROMPTS = ["a red cat", "a red dog", "a tree", "two houses"]
GOALS = {"a red cat": "a red dog"}
KEPT_TEXTS = ["", "a red dog", "a tree", "two houses"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of 16 features need less."""
    monkeypatch.setattr("policy.text_start.UPDATES", 150)


def policy_of(directory: Path, *, alpha: float = 8.0, dtype: torch.dtype = torch.float32) -> Policy:
    backbone = Backbone.of(load_pipeline(directory, dtype=dtype))
    for module in backbone.modules:
        module.requires_grad_(False)
    torch.manual_seed(0)
    for network, targets in (
        (backbone.denoiser, backbone.lora_targets),
        *((encoder, TEXT_LAYERS) for encoder in backbone.adaptable_encoders.values()),
    ):
        add_lora(network, 8, alpha, targets)
    kernel = ReverseKernel.of(backbone, 5, 1.0)
    return Policy(backbone, kernel, backbone.prompt_table(PROMPTS), guidance_scale=3.0, batch_size=64)


def start(policy: Policy) -> Distances:
    return text_start(policy, GOALS, KEPT_TEXTS, torch.Generator().manual_seed(0))


@torch.no_grad()
def read(policy: Policy) -> torch.Tensor:
    """(N, D): what the network is told of each prompt by the encoders that are adapted."""
    return flat(policy.backbone.read_texts(PROMPTS))


@pytest.mark.parametrize(("kind", "encoders"), [("sd1", 1), ("sdxl", 2), ("sd3", 2), ("flux", 1)])
def test_the_concept_is_read_as_its_anchor_and_what_is_kept_as_before(
    pipeline_dirs: dict[str, Path], flow_dirs: dict[str, Path], kind: str, encoders: int
) -> None:
    policy = policy_of((pipeline_dirs | flow_dirs)[kind])
    assert len(policy.encoders) == encoders
    before, goal = read(policy), goals_of(policy, GOALS)[0]
    found = start(policy)
    after = read(policy)
    apart = (before[0] - goal).norm()
    assert (after[0] - goal).norm() < 0.4 * apart
    assert (after[1:] - before[1:]).norm(dim=1).max() < 0.3 * apart
    assert 0 < found.forget < 0.4 and 0 < found.kept < 0.3
    torch.testing.assert_close(found.forget, ((after[0] - goal).norm() / apart).item(), rtol=1e-3, atol=0)


def test_what_the_policy_reads_is_what_its_pipeline_reads(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir)
    table = policy.table
    assert policy.current is table
    start(policy)
    assert policy.table is table and policy.current is not table
    states = policy.backbone.encode_prompts(PROMPTS).states
    assert torch.equal(policy.current.conditioning.states, states)
    assert not torch.equal(table.conditioning.states[0], states[0])
    with policy.base():
        assert policy.current is table
        assert torch.equal(policy.backbone.encode_prompts(PROMPTS).states, table.conditioning.states)
    assert torch.equal(policy.current.conditioning.states, states)


def test_the_network_that_denoises_is_not_trained(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir)
    before = policy.state()
    start(policy)
    after = policy.state()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("text_encoder.encoder.layers.0.") for name in changed)


def test_a_state_goes_back_with_what_is_read(tiny_pipeline_dir: Path) -> None:
    policy = policy_of(tiny_pipeline_dir)
    base = policy.state()
    assert is_identity(base)
    start(policy)
    found, states = policy.state(), policy.current.conditioning.states
    policy.load_state(base)
    assert torch.equal(policy.current.conditioning.states, policy.table.conditioning.states)
    policy.load_state(found)
    assert torch.equal(policy.current.conditioning.states, states)
    with pytest.raises(ValueError, match="--train_text_encoder"):
        policy.load_state({name: value for name, value in found.items() if name.startswith("unet.")})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_learns_as_well_and_keeps_its_weights(
    tiny_pipeline_dir: Path, dtype: torch.dtype
) -> None:
    policy = policy_of(tiny_pipeline_dir, dtype=dtype)
    encoder = policy.encoders["text_encoder"]
    frozen = {name: p.clone() for name, p in encoder.named_parameters() if not p.requires_grad}
    before, goal = read(policy).float(), goals_of(policy, GOALS)[0].float()
    start(policy)
    after = read(policy).float()
    assert (after[0] - goal).norm() < 0.4 * (before[0] - goal).norm()
    found = dict(encoder.named_parameters())
    assert all(found[name].dtype == dtype and torch.equal(found[name], p) for name, p in frozen.items())
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}


def test_weights_come_back_as_they_were_after_a_fault(tiny_pipeline_dir: Path) -> None:
    encoder = policy_of(tiny_pipeline_dir, dtype=torch.float16).encoders["text_encoder"]
    with pytest.raises(RuntimeError, match="inside"), in_float32([encoder]):
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        raise RuntimeError("inside")
    assert {p.dtype for p in encoder.parameters() if not p.requires_grad} == {torch.float16}


def test_few_texts_at_a_time_make_no_difference(tiny_pipeline_dir: Path) -> None:
    found = []
    for together in (1, 64):
        policy = policy_of(tiny_pipeline_dir)
        policy.batch_size = together
        start(policy)
        found.append(read(policy))
    torch.testing.assert_close(*found, atol=1e-2, rtol=1e-2)


def test_a_batch_is_drawn_from_both_sides_and_weighed_by_side() -> None:
    rows, weights = drawn(3, 5, torch.Generator().manual_seed(0))
    asked, held = rows[:FORGET], rows[FORGET:]
    assert set(asked.tolist()) == {0, 1, 2} and set(held.tolist()) == {3, 4, 5, 6, 7}
    assert len(held) == KEPT
    torch.testing.assert_close(weights[:FORGET].sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights[FORGET:].sum(), torch.tensor(KEEPING))


@pytest.mark.parametrize("kind", ["sd1", "z-image"])
def test_a_policy_may_have_no_adapter_on_a_text_encoder(flow_dirs: dict[str, Path], kind: str) -> None:
    backbone = Backbone.of(load_pipeline(flow_dirs[kind]))
    add_lora(backbone.denoiser, 8, 8, backbone.lora_targets)
    kernel = ReverseKernel.of(backbone, 5, 1.0)
    policy = Policy(backbone, kernel, backbone.prompt_table(PROMPTS), guidance_scale=3.0, batch_size=64)
    assert not policy.encoders and list(policy.networks) == [backbone.component]
    policy.load_state(policy.state())
    assert policy.current is policy.table
