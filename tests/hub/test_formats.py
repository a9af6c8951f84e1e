"""Adapters as other trainers save them: read where diffusers can, else refused with what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hub.adapter import UnfitAdapter, load_adapter
from hub.files import UnreadableAdapter
from hub.formats import OTHERS, what_else
from pipelines.base import load_pipeline

Output = Callable[[UNet2DConditionModel], torch.Tensor]
QUERIES = ["to_q", "to_v"]


def unet_of(directory: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(directory, subfolder="unet")


PEFT: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": QUERIES},
    "convolutions": {"r": 2, "lora_alpha": 1, "target_modules": ["to_q", "conv1", "conv_in", "proj_in"]},
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": QUERIES},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"attn2.to_q": 2}, "target_modules": QUERIES},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": QUERIES},
}


@pytest.mark.parametrize("kind", PEFT)
def test_an_adapter_that_peft_has_saved_is_read(
    kind: str, tiny_pipeline_dir: Path, output: Output, base_output: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = get_peft_model(unet_of(tiny_pipeline_dir), LoraConfig(init_lora_weights=False, **PEFT[kind]))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, tmp_path)
    expected = output(model.get_base_model())
    assert (expected - base_output).abs().max() > 1e-3
    torch.testing.assert_close(output(pipe.unet), expected, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.unet), base_output)


@torch.no_grad()
def test_an_adapter_of_a_text_encoder_that_peft_has_saved_is_read(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    made, pipe = load_pipeline(tiny_pipeline_dir), load_pipeline(tiny_pipeline_dir)
    ids = torch.arange(1, 8)[None]
    base = made.text_encoder(ids)[0]
    targets = ["q_proj", "out_proj", "fc1"]
    settings = LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, target_modules=targets)
    model = get_peft_model(made.text_encoder, settings)
    model.save_pretrained(tmp_path)
    expected = model(ids)[0]
    assert not torch.allclose(base, expected, atol=1e-3)
    load_adapter(pipe, tmp_path)
    torch.testing.assert_close(pipe.text_encoder(ids)[0], expected, atol=1e-5, rtol=1e-4)


def test_peft_s_format_without_its_config_is_refused(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    settings = LoraConfig(r=2, init_lora_weights=False, target_modules=QUERIES)
    get_peft_model(unet_of(tiny_pipeline_dir), settings).save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    for content in ("", "[]", json.dumps({"peft_type": "LORA", "r": "many"})):
        config.write_text(content)
        pipe = load_pipeline(tiny_pipeline_dir)
        with pytest.raises(ValueError, match=r"adapter"):
            load_adapter(pipe, tmp_path)
        assert not pipe.get_list_adapters()
    config.unlink()
    with pytest.raises(UnreadableAdapter, match=r"adapter_config\.json.*needs it"):
        load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (LoHaConfig(r=2, init_weights=False, target_modules=QUERIES), "a LoHa"),
        (LoKrConfig(r=2, init_weights=False, target_modules=QUERIES), "a LoKr"),
        (IA3Config(target_modules=QUERIES, feedforward_modules=[], init_ia3_weights=False), "an IA3 adapter"),
    ],
)
def test_other_adapters_of_peft_are_named(
    config: Any, kind: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    get_peft_model(unet_of(tiny_pipeline_dir), config).save_pretrained(tmp_path)
    pipe = load_pipeline(tiny_pipeline_dir)
    with pytest.raises(ValueError, match=rf"is {kind}.*which is not read here"):
        load_adapter(pipe, tmp_path)
    assert not pipe.get_list_adapters()


MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NAMES = {
    f"{MODULE}.hada_w1_a": "LoHa",
    f"{MODULE}.lokr_w1": "LoKr",
    f"{MODULE}.oft_blocks": "OFT",
    f"{MODULE}.on_input": "IA3",
    f"{MODULE}.diff": "difference",
    f"{MODULE}.dora_scale": "DoRA",
    "emb_params": "textual inversion",
    "string_to_param.*": "textual inversion",
    "<cat>": "textual inversion",
    "clip_l": "textual inversion",
    "adapter.body.0.in_conv.weight": "T2I-Adapter",
    "text_model.embeddings.token_embedding.weight": "weights",
    "control_model.input_blocks.0.0.weight": "ControlNet",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "model.diffusion_model.input_blocks.0.0.weight": "checkpoint",
    "first_stage_model.decoder.conv_in.weight": "checkpoint",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "original layout",
    "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight": "ComfyUI",
    "conv_in.weight": "weights",
    "decoder.conv_in.weight": "weights",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_no_lora_is_named(name: str, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    save_file({name: torch.ones(4, 4)}, tmp_path / "found.safetensors")
    with pytest.raises(UnfitAdapter, match=rf"is a.*{NAMES[name]}.*not read here; \w") as caught:
        load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path)
    assert "its own base" not in str(caught.value)


def test_a_lora_of_a_t5_is_named(flow_dirs: dict[str, Path], tmp_path: Path) -> None:
    """diffusers' converter asserts that FLUX has but one text encoder's LoRA."""
    modules = (
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
    )
    pairs = {f"{module}.lora_{way}.weight": torch.ones(4, 4) for module in modules for way in ("down", "up")}
    save_file(pairs, tmp_path / "found.safetensors")
    with pytest.raises(UnfitAdapter, match="ComfyUI and OneTrainer"):
        load_adapter(load_pipeline(flow_dirs["flux"]), tmp_path)


def test_every_kind_is_told_by_one_of_the_names_above() -> None:
    said = {what_else([name]) for name in NAMES}
    assert len(said) == len(OTHERS) and all(said)


def test_a_lora_that_can_be_read_is_nothing_else(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    settings = LoraConfig(r=2, init_lora_weights=False, target_modules=["conv_in", "to_q", "conv_out"])
    get_peft_model(unet_of(tiny_pipeline_dir), settings).save_pretrained(tmp_path)
    assert what_else(load_file(tmp_path / "adapter_model.safetensors")) == ""
    assert what_else([f"{MODULE}.lora_down.weight", f"{MODULE}.alpha"]) == ""
    assert what_else([name for name, _ in trained.named_parameters() if "lora" in name]) == ""
