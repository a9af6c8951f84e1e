"""The file for ComfyUI and AUTOMATIC1111 does what the adapter does, by diffusers' reading of it and by
theirs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from original_layout import save_original
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hub.adapter import KOHYA_NAME, UnfitAdapter, load_adapter, save_adapter
from hub.factors import Factors, NotPairs, read_factors
from hub.files import read_file
from hub.kohya import kohya_header, save_kohya, to_kohya
from hub.names import original_name
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.flow import FlowBackbone

Output = Callable[[UNet2DConditionModel], torch.Tensor]
NAME = "pytorch_lora_weights.safetensors"


@torch.no_grad()
def merged_as_kohya_does(unet: UNet2DConditionModel, file: Path) -> UNet2DConditionModel:
    """Each module's weight + alpha / rank * up @ down, the modules found by their names with underscores;
    nothing of diffusers or peft."""
    tensors = load_file(file)
    modules = {"lora_unet_" + name.replace(".", "_"): module for name, module in unet.named_modules()}
    for name in {key.split(".")[0] for key in tensors}:
        down, up, alpha = (
            tensors.pop(f"{name}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        change = (up.flatten(1) @ down.flatten(1)).reshape(modules[name].weight.shape)
        modules[name].weight += alpha / len(down) * change
    assert not tensors
    return unet


def test_it_does_what_was_trained_where_modules_are_found_by_name(
    trained_otherwise: UNet2DConditionModel,
    tiny_pipeline_dir: Path,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    save_adapter(tmp_path, trained_otherwise)
    file = save_kohya(tmp_path)
    unet = merged_as_kohya_does(
        UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet"), file
    )
    assert (output(trained_otherwise) - base_output).abs().max() > 1e-3
    assert (output(unet) - output(trained_otherwise)).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", ["attention", "every kind of layer", "rank-stabilised"])
def test_it_does_what_was_trained_in_diffusers(
    settings: str,
    train: Callable[..., UNet2DConditionModel],
    lora_settings: dict,
    tiny_pipeline_dir: Path,
    output: Output,
    tmp_path: Path,
) -> None:
    trained = train(**lora_settings[settings])
    save_adapter(tmp_path, trained)
    save_kohya(tmp_path)
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, tmp_path, weight_name=KOHYA_NAME)
    assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5


def test_several_alphas_which_diffusers_would_misread_are_refused_there(
    train: Callable[..., UNet2DConditionModel], lora_settings: dict, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path, train(**lora_settings["patterns"]))
    save_kohya(tmp_path)
    with pytest.raises(UnfitAdapter, match=NAME):
        load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path, weight_name=KOHYA_NAME)
    load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path)


def test_parts_of_a_file_that_diffusers_leaves_out_are_refused_there(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path, trained)
    tensors, _ = read_file(save_kohya(tmp_path))
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    save_file(tensors | {f"{module}.dora_scale": torch.ones(16, 1)}, tmp_path / KOHYA_NAME)
    with pytest.raises(UnfitAdapter, match=r"DoRA in kohya.s format"):
        load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path, weight_name=KOHYA_NAME)


def test_keys_are_kohyas(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained)
    tensors, _ = read_file(save_kohya(tmp_path))
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    assert {key for key in tensors if key.startswith(module)} == {
        f"{module}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert tensors[f"{module}.lora_down.weight"].shape == (4, 8) and tensors[
        f"{module}.lora_up.weight"
    ].shape == (8, 4)
    assert {t.item() for key, t in tensors.items() if key.endswith(".alpha")} == {8.0}
    assert f"{module.replace('to_q', 'to_out_0')}.alpha" in tensors


def test_header(train: Callable[..., UNet2DConditionModel], lora_settings: dict, tmp_path: Path) -> None:
    described = {
        "concept": '["cat"]',
        "modelspec.title": "LoRA that erases cat",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    save_adapter(tmp_path, train(**lora_settings["attention"]), metadata=described)
    _, header = read_file(save_kohya(tmp_path))
    assert header.items() >= described.items()
    assert (
        "lora_adapter_metadata" not in header
    )  # diffusers takes alphas from the file or from there, and refuses both
    assert header["modelspec.hash_sha256"] != read_file(tmp_path / NAME)[1]["modelspec.hash_sha256"]
    assert {key: value for key, value in header.items() if key.startswith("ss_")} == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "8.0",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "LoRA-that-erases-cat",
    }
    save_adapter(tmp_path, train(**lora_settings["patterns"]))
    _, header = read_file(save_kohya(tmp_path))
    assert (header["ss_network_dim"], header["ss_network_alpha"], header["ss_base_model_version"]) == (
        "Dynamic",
        "Dynamic",
        "unknown",
    )


@pytest.mark.parametrize(
    ("architecture", "version", "v2"),
    [
        ("stable-diffusion-v2-512", "sd_v2", "True"),
        ("stable-diffusion-v2-768-v", "sd_v2_v", "True"),
        ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "False"),
        ("stable-diffusion-custom-64", "stable-diffusion-custom-64", "False"),
    ],
)
def test_versions_of_the_base(architecture: str, version: str, v2: str) -> None:
    header = kohya_header({"modelspec.architecture": f"{architecture}/lora"}, {})
    assert (header["ss_base_model_version"], header["ss_v2"]) == (version, v2)


# --- SDXL, whose modules sd-scripts calls by the original layout's names
# ------------------------------------------------

SDXL = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
SDXL_TARGETS = [
    "to_q",
    "to_out.0",
    "proj_in",
    "ff.net.2",
    "conv1",
    "conv_shortcut",
    "time_emb_proj",
    "conv_in",
    "conv_out",
    "add_embedding.linear_1",
    "conv",
]


def trained_xl(directory: Path, **settings: Any) -> DiffusionPipeline:
    pipe = load_pipeline(directory)
    torch.manual_seed(1)
    pipe.unet.add_adapter(
        LoraConfig(
            init_lora_weights=False, **({"r": 4, "lora_alpha": 6, "target_modules": SDXL_TARGETS} | settings)
        )
    )
    return pipe


def test_sdxl_is_called_as_in_the_original_layout(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    """Added to the weights of a checkpoint in one file, under that file's own names, it does what was
    trained."""
    pipe = trained_xl(pipeline_dirs["sdxl"])
    save_adapter(tmp_path, pipe.unet, metadata=SDXL)
    tensors, header = read_file(save_kohya(tmp_path))
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q.lora_down.weight" in tensors
    assert not any("down_blocks" in name or "up_blocks" in name or "mid_block" in name for name in tensors)

    file = tmp_path / "base.safetensors"
    save_original(load_pipeline(pipeline_dirs["sdxl"]), file)
    weights = load_file(file)
    prefix = "model.diffusion_model."
    modules = {
        name.removeprefix(prefix).removesuffix(".weight").replace(".", "_"): name
        for name in weights
        if name.startswith(prefix)
    }
    for name in {key.split(".")[0] for key in tensors}:
        down, up, alpha = (
            tensors.pop(f"{name}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        weight = weights[modules[name.removeprefix("lora_unet_")]]
        weight += alpha / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    assert not tensors
    save_file(weights, file)
    merged = load_pipeline(file, config=str(pipeline_dirs["sdxl"]))
    base = xl_output(load_pipeline(pipeline_dirs["sdxl"]))
    assert (xl_output(pipe) - base).abs().max() > 1e-3
    assert (xl_output(merged) - xl_output(pipe)).abs().max() <= 1e-4


@torch.no_grad()
def xl_output(pipe: DiffusionPipeline) -> torch.Tensor:
    told = Backbone.of(pipe).encode_prompts(["a cat", "a tree"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe.unet(latents, 500, told.states, added_cond_kwargs=told.added).sample


def test_sdxl_does_what_was_trained_in_diffusers(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe = trained_xl(pipeline_dirs["sdxl"], target_modules=attention)
    save_adapter(tmp_path, pipe.unet, metadata=SDXL)
    save_kohya(tmp_path)
    other = load_pipeline(pipeline_dirs["sdxl"])
    load_adapter(other, tmp_path, weight_name=KOHYA_NAME)
    assert (xl_output(other) - xl_output(pipe)).abs().max() <= 1e-4
    several = trained_xl(
        pipeline_dirs["sdxl"], target_modules=attention, alpha_pattern={"attn2.to_q": 1.0, "attn1.to_k": 3.0}
    )
    save_adapter(tmp_path / "several", several.unet, metadata=SDXL)
    save_kohya(tmp_path / "several")
    other = load_pipeline(pipeline_dirs["sdxl"])
    with pytest.raises(UnfitAdapter, match=NAME):
        load_adapter(other, tmp_path / "several", weight_name=KOHYA_NAME)


def test_a_module_that_sdxl_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"transformer\.proj"):
        original_name("transformer.proj")


def test_without_settings_alpha_is_the_rank_as_diffusers_reads_it(
    trained: UNet2DConditionModel, tmp_path: Path
) -> None:
    path = save_adapter(tmp_path, trained)
    save_file(load_file(path), path)
    tensors, _ = read_file(save_kohya(tmp_path))
    assert {t.item() for key, t in tensors.items() if key.endswith(".alpha")} == {4.0}


def test_what_the_format_has_no_keys_for_is_refused() -> None:
    pair = {f"unet.a.to_q.lora.{side}.weight": torch.ones(2, 2) for side in ("down", "up")}
    assert len(to_kohya(read_factors(pair, {}))) == 3
    for tensors, strange in [
        ({}, None),
        (pair | {"unet.a.to_q.lora_magnitude_vector": torch.ones(2)}, "unet.a.to_q.lora_magnitude_vector"),
        ({"unet.a.to_q.lora.down.weight": torch.ones(2, 2)}, "unet.a.to_q.lora_B.weight"),
        ({name.replace("unet", "text_encoder_3"): t for name, t in pair.items()}, "text_encoder_3.a"),
        (pair | {name.replace("unet", "transformer"): t for name, t in pair.items()}, "unet.a.to_q"),
    ]:
        with pytest.raises(NotPairs, match=strange):
            read_factors(tensors, {})


# --- the keys that ComfyUI looks for
# ------------------------------------------------

RECORDED = Path(__file__).with_name("recorded")
"""For each base a line for each weight that ComfyUI patches: the module's name in diffusers and in the
original layout, by its `comfy.utils.unet_to_diffusers`. It looks for `lora_unet_` and either name, with `_`
for each dot (`comfy.lora.model_lora_keys_unet`)."""
FULL_SIZE: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}


@pytest.mark.parametrize("base", FULL_SIZE)
def test_every_key_of_a_full_size_base_is_one_that_comfyui_looks_for(base: str) -> None:
    with gzip.open(RECORDED / f"comfyui_{base}.txt.gz", "rt") as file:
        recorded = dict(line.split() for line in file)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL_SIZE[base])
    modules = [name for name, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(modules) > 250 and set(modules) <= recorded.keys()
    factors = {f"unet.{name}": Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0) for name in modules}
    tensors, names = to_kohya(factors), recorded.keys()
    if base == "sdxl":
        tensors, names = to_kohya(factors, SDXL["modelspec.architecture"]), recorded.values()
        assert {name: original_name(name) for name in modules}.items() <= recorded.items()
    known = {f"lora_unet_{name.replace('.', '_')}" for name in names}
    assert len(tensors) == 3 * len(modules) and {key.split(".")[0] for key in tensors} <= known


TRANSFORMERS: dict[str, tuple[type[ModelMixin], dict[str, Any]]] = {
    "sd3": (SD3Transformer2DModel, {"num_layers": 24, "num_attention_heads": 24}),
    "sd3.5-medium": (SD3Transformer2DModel, {"num_layers": 24, "dual_attention_layers": tuple(range(13))}),
    "flux": (FluxTransformer2DModel, {"guidance_embeds": True}),
}
JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SINGLE = ("to_q", "to_k", "to_v")


@pytest.mark.parametrize("base", TRANSFORMERS)
def test_every_key_of_a_full_size_transformer_is_one_that_comfyui_looks_for(base: str) -> None:
    """It looks for `lora_transformer_` and diffusers' name, with `_` for each dot, of the attention in
    each block (`comfy.utils.mmdit_to_diffusers`, `flux_to_diffusers`, `comfy.lora.model_lora_keys_unet`)."""
    kind, settings = TRANSFORMERS[base]
    with torch.device("meta"):
        transformer = kind(**settings)
    double = [f"transformer_blocks.{i}.attn.{name}" for i in range(24) for name in JOINT]
    single = [f"single_transformer_blocks.{i}.attn.{name}" for i in range(38) for name in SINGLE]
    known = {f"lora_transformer_{name.replace('.', '_')}" for name in (*double, *single)}
    modules = [name for name, _ in transformer.named_modules() if name.endswith(FlowBackbone.lora_targets)]
    factors = {f"transformer.{name}": Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0) for name in modules}
    keys = {key.split(".")[0] for key in to_kohya(factors)}
    assert len(keys) == len(modules) > 90 and keys <= known


def test_an_adapter_of_z_image_needs_no_other_names(flow_dirs: dict[str, Path], tmp_path: Path) -> None:
    """ComfyUI does not know it by `lora_transformer_`, whatever is adapted."""
    for target in ("attention.to_q", "feed_forward.w1"):
        denoiser = Backbone.of(load_pipeline(flow_dirs["z-image"])).denoiser
        denoiser.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=[target]))
        path = save_adapter(tmp_path, denoiser)
        assert f"transformer.layers.0.{target}.lora_A.weight" in load_file(path)
        with pytest.raises(ValueError, match=r"Z-Image ComfyUI does not know.*as it is"):
            save_kohya(tmp_path)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_peft_s_files_of_a_transformer_are_converted(
    kind: str, flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    settings = LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "x_embedder"])
    denoiser = Backbone.of(load_pipeline(flow_dirs[kind])).denoiser
    get_peft_model(denoiser, settings).save_pretrained(tmp_path)
    keys = load_file(save_kohya(tmp_path))
    assert all(key.startswith("lora_transformer_") for key in keys)
    assert "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight" in keys
    assert "lora_transformer_x_embedder.alpha" in keys or kind == "sd3"
