"""Adapters that lie on the CLIP text encoders too, of every class of pipelines: what is written is restored,
checked, merged, converted and fused with all of its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_sdxl

from hub.adapter import KOHYA_NAME, UnfitAdapter, load_adapter, read_adapter_metadata, save_adapter
from hub.card import model_card
from hub.factors import adapter_factors
from hub.fuse import fuse_adapter, save_pipeline
from hub.kohya import save_kohya
from hub.merge import merge_adapters
from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base

NAME = "pytorch_lora_weights.safetensors"
BLOCK = [f"layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + [
    "layers.0.mlp.fc1",
    "layers.0.mlp.fc2",
]
ONE = {"r": 2, "lora_alpha": 3, "target_modules": BLOCK}
SEVERAL = {"r": 2, "lora_alpha": 3, "target_modules": BLOCK, "rank_pattern": {"fc1": 1}} | {
    "alpha_pattern": {"fc1": 5, "q_proj": 1}
}
"""Settings of a text encoder's part: with one alpha, and with several and several ranks."""
KINDS: dict[str, tuple[str, set[str]]] = {
    "sd1": ("stable-diffusion-v1/lora", {"lora_unet", "lora_te"}),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", {"lora_unet", "lora_te1", "lora_te2"}),
    "sd3": ("stable-diffusion-3/lora", {"lora_transformer", "lora_te1", "lora_te2"}),
    "flux": ("flux-1/lora", {"lora_transformer", "lora_te1"}),
}
"""Of each class: the base's name in headers, and how names in kohya's format begin."""


@pytest.fixture(scope="session")
def bases(flow_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sdxl")
    save_sdxl(directory)
    return flow_dirs | {"sdxl": directory}


def load(directory: Path) -> DiffusionPipeline:
    return load_base(BaseConfig(str(directory), resolution=16))


def adapted(
    directory: Path, seed: int = 0, *, denoiser: bool = True, text: dict[str, Any] | None = ONE
) -> DiffusionPipeline:
    """A pipeline with an adapter of which no matrix is zero.

    Args:
        denoiser: whether it is on the network that denoises.
        text: its settings on the text encoders, if it is on these.
    """
    pipe = load(directory)
    backbone = Backbone.of(pipe)
    torch.manual_seed(seed)
    if denoiser:
        targets = list(backbone.lora_targets)[seed:]
        backbone.denoiser.add_adapter(
            LoraConfig(r=4 + seed, lora_alpha=6, init_lora_weights=False, target_modules=targets)
        )
    for encoder in backbone.adaptable_encoders.values() if text else ():
        # transformers calls it "default" as diffusers does.
        encoder.add_adapter(LoraConfig(init_lora_weights=False, **text), adapter_name="default")
    return pipe


def save(pipe: DiffusionPipeline, directory: Path, kind: str = "sd1") -> Path:
    backbone, header = Backbone.of(pipe), {"modelspec.architecture": KINDS[kind][0], "concept": '["cat"]'}
    return save_adapter(directory, backbone.denoiser, "default", header, text_encoders=encoders(pipe))


def encoders(pipe: DiffusionPipeline) -> dict[str, Any]:
    return Backbone.of(pipe).adaptable_encoders


def drawn(pipe: DiffusionPipeline) -> torch.Tensor:
    return Backbone.of(pipe).draw_latents(
        ["a cat image in Van Gogh style"],
        torch.Generator().manual_seed(0),
        num_inference_steps=2,
        guidance_scale=2.0,
        stochastic=False,
    )


def states(pipe: DiffusionPipeline) -> torch.Tensor:
    """Everything that the text encoders say of a prompt, flat."""
    told = Backbone.of(pipe).encode_prompts(["a cat image in Van Gogh style"])
    return torch.cat([tensor.flatten() for tensor in (told.states, told.pooled) if tensor is not None])


def adapters(pipe: DiffusionPipeline) -> dict[str, list[Any]]:
    """Of each layer that has an adapter: its matrices, and their factor."""
    return {
        f"{component}.{name}": [
            *(
                part.weight.tolist()
                for matrices in (layer.lora_A, layer.lora_B)
                for part in matrices.values()
            ),
            *layer.scaling.values(),
        ]
        for component in (Backbone.of(pipe).component, *encoders(pipe))
        for name, layer in getattr(pipe, component).named_modules()
        if isinstance(layer, LoraLayer)
    }


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# --- saved and loaded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [ONE, SEVERAL], ids=["one alpha", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_restored(
    kind: str, settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    made, pipe = adapted(bases[kind], text=settings), load(bases[kind])
    base, base_states = drawn(pipe), states(pipe)
    save(made, tmp_path, kind)
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters().keys() == {Backbone.of(pipe).component, *encoders(pipe)}
    assert adapters(pipe) == adapters(made)
    assert distance(drawn(pipe), drawn(made)) <= 1e-5 and distance(states(pipe), states(made)) <= 1e-6
    assert distance(drawn(pipe), base) > 1e-3 and distance(states(pipe), base_states) > 1e-3
    name = pipe.get_active_adapters()[0]
    pipe.set_adapters(name, 0.0)
    assert torch.equal(states(pipe), base_states) and distance(drawn(pipe), base) <= 1e-5
    pipe.set_adapters(name, 1.0)
    assert distance(states(pipe), states(made)) <= 1e-6
    pipe.unload_lora_weights()
    assert torch.equal(states(pipe), base_states) and distance(drawn(pipe), base) <= 1e-5
    assert load_adapter(pipe, tmp_path) and adapters(pipe) == adapters(made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_encoders_alone_are_restored(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    made, pipe = adapted(bases[kind], denoiser=False), load(bases[kind])
    save(made, tmp_path, kind)
    load_adapter(pipe, tmp_path)
    assert pipe.get_list_adapters().keys() == encoders(pipe).keys()
    assert adapters(pipe) == adapters(made) and distance(states(pipe), states(made)) <= 1e-6


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_matrices_in_half_precision_are_restored(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    made, pipe = adapted(bases[kind]), load(bases[kind])
    networks = [Backbone.of(made).denoiser, *encoders(made).values()]
    trained = [p for network in networks for name, p in network.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.data = parameter.data.half()
    tensors = load_file(save(made, tmp_path, kind))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    load_adapter(pipe, tmp_path)
    assert adapters(pipe) == adapters(made)
    half = load(bases[kind]).to(torch.float16)
    load_adapter(half, tmp_path)
    assert {p.dtype for encoder in encoders(half).values() for p in encoder.parameters()} == {torch.float16}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_that_every_program_knows_and_no_path_is_in_the_header(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """ComfyUI, diffusers and transformers before 5.6 look for `text_model`."""
    made = adapted(bases[kind])
    names = load_file(save(made, tmp_path, kind))
    for encoder in encoders(made):
        mine = {name for name in names if name.startswith(f"{encoder}.")}
        layer = f"{encoder}.text_model.encoder.layers.0"
        assert len(mine) == 12 and all(name.startswith(layer) for name in mine)
        assert f"{layer}.mlp.fc1.lora_linear_layer.down.weight" in mine
    header = read_adapter_metadata(tmp_path)
    assert str(bases[kind]) not in str(header)
    settings = header["lora_adapter_metadata"]
    for encoder in encoders(made):
        assert (settings[f"{encoder}.r"], settings[f"{encoder}.lora_alpha"]) == (2, 3)


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_a_tensor_that_is_missing_or_strange_is_found(
    kind: str, encoder: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(save(adapted(bases[kind]), tmp_path, kind))
    up = f"{encoder}.text_model.encoder.layers.0.mlp.fc2.lora_linear_layer.up.weight"
    beyond = up.replace("layers.0", "layers.9")
    faults = [
        ({name: t for name, t in tensors.items() if name != up}, rf"lacks 1 of.*{encoder}\..*fc2.lora_B"),
        (tensors | {beyond: tensors[up].clone()}, rf"1 of.*no place for.*{encoder}\..*layers.9"),
        (tensors | {up: tensors[up] * torch.nan}, f"NaN.*{encoder}"),
        (tensors | {up: tensors[up].repeat(2, 1)}, NAME),
    ]
    pipe = load(bases[kind])
    base = states(pipe)
    for damaged, message in faults:
        save_file(damaged, tmp_path / NAME)
        with pytest.raises(UnfitAdapter, match=message):
            load_adapter(pipe, tmp_path)
        assert not any(pipe.get_list_adapters().values()) and torch.equal(states(pipe), base)


def test_an_adapter_of_two_text_encoders_does_not_fit_a_pipeline_of_one(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    save(adapted(bases["sd3"]), tmp_path, "sd3")
    with pytest.raises(UnfitAdapter, match=NAME):
        load_adapter(load(bases["flux"]), tmp_path)


# --- merged ---------------------------------------------------------------------------------------------


@pytest.fixture
def parts(request: pytest.FixtureRequest, bases: dict[str, Path], tmp_path: Path) -> list[Path]:
    """Adapters of a class: of everything, of the network that denoises alone, of text encoders alone, and of
    everything with other ranks and modules."""
    base = bases[request.param]
    other = SEVERAL | {"target_modules": ["layers.0.mlp.fc1", "layers.1.self_attn.q_proj"]}
    made = [
        adapted(base, text=SEVERAL),
        adapted(base, 1, text=None),
        adapted(base, 2, denoiser=False),
        adapted(base, 3, text=other),
    ]
    return [save(pipe, tmp_path / f"part-{i}", request.param).parent for i, pipe in enumerate(made)]


@pytest.mark.parametrize(("parts", "kind"), [(kind, kind) for kind in KINDS], indirect=["parts"])
def test_the_merged_adapter_does_what_all_do_under_set_adapters(
    kind: str, parts: list[Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    pipe, weights = load(bases[kind]), [1.0, -0.5, 0.7, 0.3]
    base = states(pipe)
    pipe.set_adapters([load_adapter(pipe, part) for part in parts], weights)
    images, texts = drawn(pipe), states(pipe)
    assert distance(texts, base) > 1e-3
    for name, rank in (("merged", None), ("at full rank", 64)):
        pipe.unload_lora_weights()
        results = merge_adapters(parts, weights, tmp_path / name, rank)
        assert (results["relative_error"] or 0.0) < 1e-6
        load_adapter(pipe, tmp_path / name)
        assert distance(states(pipe), texts) <= 2e-5 and distance(drawn(pipe), images) <= 1e-4


@pytest.mark.parametrize("parts", ["sdxl"], indirect=True)
def test_what_one_adapter_has_keeps_its_rank_and_a_lower_one_is_for_all_parts(
    parts: list[Path], tmp_path: Path
) -> None:
    merge_adapters([parts[1], parts[2]], [1.0, 2.0], tmp_path / "merged")
    merged, alone = adapter_factors(tmp_path / "merged" / NAME), adapter_factors(parts[2] / NAME)
    assert {name.partition(".")[0] for name in merged} == {"unet", "text_encoder", "text_encoder_2"}
    for name, factors in alone.items():
        assert merged[name].rank == factors.rank == 2
        wanted = 2 * factors.scale * factors.up @ factors.down
        assert torch.allclose(merged[name].scale * merged[name].up @ merged[name].down, wanted, atol=1e-6)
    results = merge_adapters(parts, [1.0] * 4, tmp_path / "lower", rank=1)
    assert 0 < results["relative_error"] < 1
    assert {factors.rank for factors in adapter_factors(tmp_path / "lower" / NAME).values()} == {1}


@pytest.mark.parametrize("parts", ["sd1"], indirect=True)
def test_text_encoders_do_not_make_kinds_of_networks_fit(
    parts: list[Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    flow = save(adapted(bases["flux"]), tmp_path / "flow", "flux").parent
    for fitting in (parts[2], save(adapted(bases["flux"], denoiser=False), tmp_path / "text", "flux").parent):
        merge_adapters([flow, fitting], [1.0, 1.0], tmp_path / f"with {fitting.name}")
    with pytest.raises(ValueError, match=r"different kinds of networks.*unet.*transformer"):
        merge_adapters([parts[0], flow], [1.0, 1.0], tmp_path / "merged")


# --- in kohya's format ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_those_that_comfyui_and_sd_scripts_look_for(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """By `comfy.lora.model_lora_keys_clip`, and by sd-scripts' `networks`."""
    save(adapted(bases[kind]), tmp_path, kind)
    tensors = load_file(save_kohya(tmp_path, tmp_path / KOHYA_NAME))
    starts = KINDS[kind][1]
    assert {re.match(r"lora_[a-z0-9]+", key)[0] for key in tensors} == starts
    for start in starts - {"lora_unet", "lora_transformer"}:
        layer = f"{start}_text_model_encoder_layers_0"
        modules = {key.split(".")[0] for key in tensors if key.startswith(f"{start}_")}
        attention = {f"{layer}_self_attn_{name}_proj" for name in ("q", "k", "v", "out")}
        assert modules == attention | {f"{layer}_mlp_fc1", f"{layer}_mlp_fc2"}
        assert tensors[f"{layer}_mlp_fc1.alpha"] == 3.0
        assert tensors[f"{layer}_mlp_fc1.lora_down.weight"].shape[0] == 2


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux"])
def test_diffusers_restores_every_part_from_kohyas_format(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    made, pipe = adapted(bases[kind]), load(bases[kind])
    save(made, tmp_path, kind)
    save_kohya(tmp_path, tmp_path / KOHYA_NAME)
    load_adapter(pipe, tmp_path, weight_name=KOHYA_NAME)
    assert pipe.get_list_adapters().keys() == {Backbone.of(pipe).component, *encoders(pipe)}
    assert distance(states(pipe), states(made)) <= 2e-5 and distance(drawn(pipe), drawn(made)) <= 1e-4


def test_kohyas_format_of_sd3_which_diffusers_does_not_read_is_named(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    save(adapted(bases["sd3"]), tmp_path, "sd3")
    save_kohya(tmp_path, tmp_path / KOHYA_NAME)
    with pytest.raises(UnfitAdapter, match=f"ComfyUI.*{NAME}"):
        load_adapter(load(bases["sd3"]), tmp_path, weight_name=KOHYA_NAME)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_several_alphas_which_diffusers_would_misread_are_refused_there_and_merged_here(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    path = save(adapted(bases[kind], text=SEVERAL), tmp_path, kind)
    twin = save_kohya(tmp_path, tmp_path / KOHYA_NAME)
    with pytest.raises(UnfitAdapter, match=f"several alphas.*{NAME}"):
        load_adapter(load(bases[kind]), tmp_path, weight_name=KOHYA_NAME)
    found, wanted = adapter_factors(twin), adapter_factors(path)
    assert found.keys() == wanted.keys()
    for name, factors in wanted.items():
        assert found[name].alpha == factors.alpha
        assert torch.equal(found[name].up, factors.up) and torch.equal(found[name].down, factors.down)
    merge_adapters([twin, path], [1.0, -1.0], tmp_path / "nothing")
    merged = adapter_factors(tmp_path / "nothing" / NAME)
    assert merged.keys() == wanted.keys()
    assert max(float((f.scale * f.up @ f.down).abs().max()) for f in merged.values()) < 1e-6


# --- fused, and described -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_in_the_fused_pipeline(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    save(adapted(bases[kind]), tmp_path / "adapter", kind)
    pipe = load(bases[kind])
    name = load_adapter(pipe, tmp_path / "adapter")
    pipe.set_adapters(name, 0.5)
    images, texts = drawn(pipe), states(pipe)
    pipe.set_adapters(name, 1.0)
    fuse_adapter(pipe, name, 0.5)
    save_pipeline(pipe, tmp_path / "fused")
    fused = load(tmp_path / "fused")
    assert not any(fused.get_list_adapters().values())
    assert distance(states(fused), texts) <= 2e-5 and distance(drawn(fused), images) <= 1e-4
    assert distance(states(fused), states(load(bases[kind]))) > 1e-3


CHANGED = {
    "sd1": "the UNet and the text encoder:",
    "sdxl": "the UNet, the text encoder and the second text encoder:",
    "flux": "the transformer and the text encoder:",
}


@pytest.mark.parametrize("kind", CHANGED)
def test_the_card_says_which_parts_are_changed(
    kind: str, bases: dict[str, Path], results: dict[str, Any], tmp_path: Path
) -> None:
    made = adapted(bases[kind])
    parts = ", ".join(f'"{name}"' for name in (Backbone.of(made).component, *encoders(made)))
    (tmp_path / "no-van-gogh-style.safetensors").write_bytes(b"")
    known = results | {"pipeline_class": Backbone.of(made).pipeline_class}
    save(adapted(bases[kind], text=None), tmp_path, kind)
    alone = str(model_card(known, tmp_path))
    assert "It changes" not in alone and "nothing for CLIP" in alone and "fuse_lora(adapter_names" in alone
    save(made, tmp_path, kind)
    (tmp_path / "no-van-gogh-style.safetensors").write_bytes(b"")
    card = str(model_card(known, tmp_path))
    assert f"\n\nIt changes {CHANGED[kind]} load all of it" in card and "`set_adapters` is for all" in card
    assert f"pipe.fuse_lora([{parts}], adapter_names=[name])" in card
    assert "a model strength and a CLIP strength of 1.\n" in card and "nothing for CLIP" not in card


def test_the_card_of_a_text_encoder_alone(
    bases: dict[str, Path], results: dict[str, Any], tmp_path: Path
) -> None:
    save(adapted(bases["sd1"], denoiser=False), tmp_path)
    assert "It changes the text encoder: load" in str(model_card(results, tmp_path))


def test_what_the_card_tells_flux_to_fuse_is_all_of_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """By default diffusers fuses FLUX's transformer alone."""
    save(adapted(bases["flux"]), tmp_path, "flux")
    pipe = load(bases["flux"])
    name, texts = load_adapter(pipe, tmp_path), states(load(bases["flux"]))
    layers = [m for network in (pipe.transformer, pipe.text_encoder) for m in network.modules()]
    layers = [module for module in layers if isinstance(module, LoraLayer)]
    pipe.fuse_lora(["transformer", "text_encoder"], adapter_names=[name])
    assert all(layer.merged for layer in layers)
    pipe.unfuse_lora()
    assert not any(layer.merged for layer in layers)
    pipe.unload_lora_weights()
    assert distance(states(pipe), texts) <= 1e-5
