from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from policy.lora import add_lora, base_policy, load_lora_state, lora_state


@torch.no_grad()
def output(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return unet(
        torch.randn(2, 4, 8, 8, generator=generator), 500, torch.randn(2, 7, 16, generator=generator)
    ).sample


def test_a_new_adapter_is_the_identity_and_all_that_is_trained(unet: UNet2DConditionModel) -> None:
    base = output(unet)
    parameters = add_lora(unet, 4, 8, ["attn2.to_k", "attn2.to_v"])
    assert torch.equal(output(unet), base)
    trainable = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name and ("to_k" in name or "to_v" in name) for name in trainable)
    assert len(parameters) == len(trainable)
    assert all(4 in p.shape for p in parameters)


def test_a_half_precision_base_gets_a_float32_adapter(unet: UNet2DConditionModel) -> None:
    parameters = add_lora(unet.to(torch.bfloat16), 4, 4, ["attn2.to_k"])
    assert {p.dtype for p in parameters} == {torch.float32}
    assert unet.conv_in.weight.dtype == torch.bfloat16


def test_an_adapter_on_no_module_is_an_error(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="no_such_module"):
        add_lora(unet, 4, 4, ["no_such_module"])


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_an_error_that_names_the_rank(unet: UNet2DConditionModel, rank: int) -> None:
    with pytest.raises(ValueError, match="--rank"):
        add_lora(unet, rank, 1, ["attn2.to_k"])


def test_base_policy_is_the_base_bit_for_bit_and_gives_the_adapter_back(unet: UNet2DConditionModel) -> None:
    base = output(unet)
    parameters = add_lora(unet, 4, 4, ["attn2.to_q", "attn2.to_out.0"])
    with torch.no_grad():
        for p in parameters:
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    moved = output(unet)
    assert (moved - base).abs().max() > 1e-3
    with base_policy(unet):
        assert torch.equal(output(unet), base)
    assert torch.equal(output(unet), moved)
    assert all(p.requires_grad for p in parameters)
    assert sum(p.requires_grad for p in unet.parameters()) == len(parameters)

    with pytest.raises(RuntimeError, match="inside"), base_policy(unet):
        raise RuntimeError("inside")
    assert torch.equal(output(unet), moved) and all(p.requires_grad for p in parameters)

    unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 7, 16)).sample.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


def test_a_state_is_a_copy_that_goes_back_bit_for_bit(unet: UNet2DConditionModel) -> None:
    parameters = add_lora(unet, 4, 4, ["attn2.to_q"])
    state = lora_state(unet)
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p += 1.0
    assert not any(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    load_lora_state(unet, state)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_a_state_of_other_modules_or_another_rank_is_refused(unet: UNet2DConditionModel) -> None:
    add_lora(unet, 4, 4, ["attn2.to_q"])
    state = lora_state(unet)
    with pytest.raises(ValueError, match="lora_target_modules"):
        load_lora_state(unet, dict(list(state.items())[1:]))
    with pytest.raises(ValueError, match="rank"):
        load_lora_state(unet, {name: torch.zeros(3, 5) for name in state})
