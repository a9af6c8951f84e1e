from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from original_layout import save_original
from safetensors.torch import load_file, save_file
from tiny_pipelines import BACKBONES, random_vae
from transformers import CLIPConfig, CLIPImageProcessor

from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.supported import SUPPORTED, Unsupported


def test_a_directory_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json"):
        load_pipeline(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent/pipeline") as caught:
        load_pipeline(tmp_path / "absent" / "pipeline")
    assert "\n" not in str(caught.value)


def test_a_pipeline_of_another_class_is_refused(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    index = json.loads((directory / "model_index.json").read_text())
    index["_class_name"] = "DDPMPipeline"
    kept = ("_class_name", "_diffusers_version", "unet", "scheduler")
    (directory / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k in kept}))
    with pytest.raises(ValueError, match="DDPMPipeline"):
        load_pipeline(directory)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_refused(part: str, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    path = next((directory / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=str(directory)) as caught:
        load_pipeline(directory)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    path = next((directory / "unet").glob("*.safetensors"))
    path.rename(path.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ValueError, match=str(directory)):
        load_pipeline(directory)


# --- which bases are supported
# ------------------------------------------------------------------------------------


def copied(
    source: Path, directory: Path, index: dict[str, Any] | None = None, unet: dict[str, Any] | None = None
) -> Path:
    """A copy of a pipeline with other entries in model_index.json and in its UNet's config."""
    shutil.copytree(source, directory)
    for path, changes in (
        (directory / "model_index.json", index),
        (directory / "unet" / "config.json", unet),
    ):
        if changes:
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def test_the_class_is_the_bases_own(backbone_dir: Path) -> None:
    pipe = load_pipeline(backbone_dir)
    assert type(pipe).__name__ == json.loads((backbone_dir / "model_index.json").read_text())["_class_name"]
    assert {p.dtype for p in load_pipeline(backbone_dir, dtype=torch.bfloat16).unet.parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("backbone", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "name", ["SomeCommunityPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionXLPAGPipeline"]
)
def test_pipelines_of_other_names_that_are_made_of_the_same_parts_are_loaded(
    backbone: str, name: str, pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    pipe = load_pipeline(copied(pipeline_dirs[backbone], tmp_path / "base", {"_class_name": name}))
    assert type(pipe) is type(load_pipeline(pipeline_dirs[backbone]))


UNSUPPORTED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "inpainting": (
        "sd1",
        {"_class_name": "StableDiffusionInpaintPipeline"},
        {"in_channels": 9},
        "inpainting",
    ),
    "instruct-pix2pix": (
        "sd1",
        {"_class_name": "StableDiffusionInstructPix2PixPipeline"},
        {"in_channels": 8},
        "instruct-pix2pix",
    ),
    "depth": ("sd1", {}, {"in_channels": 5}, "depth-to-image"),
    "upscaling": ("sd1", {}, {"in_channels": 7, "num_class_embeds": 1000}, "upscaling"),
    "video": ("sd1", {}, {"in_channels": 12}, "12 "),
    "latent consistency": ("sd1", {}, {"time_cond_proj_dim": 256}, "latent consistency"),
    "unCLIP": ("sd1", {}, {"class_embed_type": "projection"}, "class_embed_type"),
    "SDXL's conditioning without its encoders": (
        "sd1",
        {},
        {"addition_embed_type": "text_time"},
        "addition_embed_type",
    ),
    "SDXL's encoders without its conditioning": (
        "sdxl",
        {},
        {"addition_embed_type": None},
        "addition_embed_type",
    ),
    "refiner": ("sdxl", {"text_encoder": [None, None], "tokenizer": [None, None]}, {}, "refiner"),
    "ControlNet": (
        "sd1",
        {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]},
        {},
        "controlnet",
    ),
    "Stable Diffusion 3": (
        "sd1",
        {
            "_class_name": "StableDiffusion3Pipeline",
            "unet": [None, None],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
        },
        {},
        "StableDiffusion3Pipeline",
    ),
    "another text encoder": (
        "sd1",
        {"_class_name": "AltDiffusionPipeline", "text_encoder": ["x", "RobertaSeriesModel"]},
        {},
        "AltDiffusionPipeline",
    ),
    "a tiny autoencoder": (
        "sd1",
        {"vae": ["diffusers", "AutoencoderTiny"]},
        {},
        "AutoencoderTiny",
    ),
    "code of its own": (
        "sd1",
        {"_class_name": ["my_pipeline", "MyPipeline"]},
        {},
        "my_pipeline.py",
    ),
}


@pytest.mark.parametrize(("backbone", "index", "unet", "names"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_other_bases_are_refused_with_the_reason_and_the_list_of_those_that_are_not(
    backbone: str,
    index: dict[str, Any],
    unet: dict[str, Any],
    names: str,
    pipeline_dirs: dict[str, Path],
    tmp_path: Path,
) -> None:
    directory = copied(pipeline_dirs[backbone], tmp_path / "base", index, unet)
    with pytest.raises(Unsupported) as caught:
        load_pipeline(directory)
    message = str(caught.value)
    assert names in message and "\n" not in message and message.endswith(SUPPORTED)


# --- another VAE, variants
# ----------------------------------------------------------------------------------------


def test_another_vae_takes_the_place_of_the_bases_own(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(7)
    random_vae(8).save_pretrained(tmp_path / "vae")
    own = load_pipeline(pipeline_dirs["sd1"]).vae.decoder.conv_in.weight
    given = load_pipeline(pipeline_dirs["sd1"], vae=str(tmp_path / "vae"), dtype=torch.bfloat16).vae
    assert given.dtype == torch.bfloat16 and not torch.equal(
        given.decoder.conv_in.weight.float(), own.bfloat16().float()
    )
    of_a_pipeline = load_pipeline(pipeline_dirs["sd1"], vae=str(pipeline_dirs["sd2"])).vae
    theirs = load_pipeline(pipeline_dirs["sd2"]).vae
    assert torch.equal(of_a_pipeline.decoder.conv_in.weight, theirs.decoder.conv_in.weight)


def test_a_vae_of_other_latents_is_refused(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.13025.*0\.18215"):
        load_pipeline(pipeline_dirs["sd1"], vae=str(pipeline_dirs["sdxl"]))
    random_vae(8, latent_channels=16).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"\b16\b.*\b4\b"):
        load_pipeline(pipeline_dirs["sd1"], vae=str(tmp_path / "vae"))
    with pytest.raises(ValueError, match=str(tmp_path / "absent")):
        load_pipeline(pipeline_dirs["sd1"], vae=str(tmp_path / "absent"))


def test_a_variant_of_the_weights_is_loaded(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    load_pipeline(pipeline_dirs["sdxl"], dtype=torch.float16).save_pretrained(
        tmp_path, variant="fp16", safe_serialization=True
    )
    assert load_pipeline(tmp_path, variant="fp16").unet.dtype == torch.float32
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("parts", [("unet",), ("unet", "vae", "text_encoder")])
def test_a_base_with_a_variant_only_says_how_to_name_it(
    parts: tuple[str, ...], pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    directory = copied(pipeline_dirs["sd1"], tmp_path / "base")
    for part in parts:
        (file,) = (directory / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.raises(ValueError, match=r"add --variant fp16\.$"):
        load_pipeline(directory)
    if len(parts) == 3:
        load_pipeline(directory, variant="fp16")


def test_a_base_of_pickles_is_not_read_and_says_so(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    directory = copied(pipeline_dirs["sd1"], tmp_path / "base")
    (file,) = (directory / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"pickles, which are never read"):
        load_pipeline(directory)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_what_git_lfs_has_not_fetched_is_said_to_be_that(
    part: str, pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    directory = copied(pipeline_dirs["sd1"], tmp_path / "base")
    (file,) = (directory / part).glob("*.safetensors")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_pipeline(directory)


def test_a_tokenizer_that_knows_no_window_gets_its_encoder_s(
    pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    directory = copied(pipeline_dirs["sdxl"], tmp_path / "base")
    for number in ("", "_2"):
        file = directory / f"tokenizer{number}" / "tokenizer_config.json"
        said = json.loads(file.read_text())
        said.pop("model_max_length", None)
        file.write_text(json.dumps(said))
    pipe, usual = load_pipeline(directory), load_pipeline(pipeline_dirs["sdxl"])
    assert pipe.tokenizer.model_max_length == usual.tokenizer.model_max_length < 1000
    assert pipe.tokenizer_2.model_max_length == usual.tokenizer_2.model_max_length < 1000


@pytest.mark.parametrize("files", ["none", "a pickle"])
def test_a_safety_checker_that_cannot_be_loaded_is_left_out(
    files: str, pipeline_dirs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied(pipeline_dirs["sd1"], tmp_path / "base")
    index = json.loads((directory / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (directory / "model_index.json").write_text(json.dumps(index))
    if files == "a pickle":
        CLIPImageProcessor().save_pretrained(directory / "feature_extractor")
        CLIPConfig().save_pretrained(directory / "safety_checker")
        (directory / "safety_checker" / "pytorch_model.bin").write_bytes(b"a pickle")
    assert load_pipeline(directory).safety_checker is None and not caplog.records
    assert load_pipeline(directory, safety_checker=True).safety_checker is None
    assert "safety checker" in caplog.text and "there is none" in caplog.text
    (directory / "unet" / "config.json").unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        load_pipeline(directory, safety_checker=True)


# --- checkpoints in one file
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_checkpoint_in_one_file_is_the_pipeline_it_was_made_of(
    backbone: str, pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    """Its configs and tokenizers come from a diffusers directory whose weights are others."""
    directory = copied(pipeline_dirs[backbone], tmp_path / "configs")
    for weights in directory.rglob("*.safetensors"):
        weights.unlink()
    whole = load_pipeline(pipeline_dirs[backbone])
    save_original(whole, tmp_path / "model.safetensors")
    pipe = load_pipeline(tmp_path / "model.safetensors", config=str(directory))
    assert type(pipe) is type(whole)
    for module, theirs in zip(Backbone.of(pipe).modules, Backbone.of(whole).modules, strict=True):
        ours = module.state_dict()
        assert ours.keys() == theirs.state_dict().keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())
    assert dict(pipe.scheduler.config) == dict(whole.scheduler.config)
    assert (
        load_pipeline(tmp_path / "model.safetensors", config=str(directory), dtype=torch.bfloat16).unet.dtype
        == torch.bfloat16
    )


def test_files_that_are_no_checkpoint_of_a_supported_base_are_refused(
    pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    save_original(load_pipeline(pipeline_dirs["sdxl"]), tmp_path / "xl.safetensors")
    state = load_file(tmp_path / "xl.safetensors")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"half a file")
    save_file({"transformer.weight": torch.ones(1)}, tmp_path / "flux.safetensors")
    save_file(state | {first: torch.ones(8, 9, 3, 3)}, tmp_path / "inpainting.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if "embedders" not in name},
        tmp_path / "unet.safetensors",
    )
    refiner = {
        name.replace("embedders.1.", "embedders.0."): tensor
        for name, tensor in state.items()
        if "embedders.0." not in name
    }
    save_file(refiner, tmp_path / "refiner.safetensors")
    for name, kind in {
        "model.ckpt": "pickle",
        "broken.safetensors": "safetensors",
        "flux.safetensors": "UNet",
        "inpainting.safetensors": "inpainting",
        "unet.safetensors": "text encoder",
        "refiner.safetensors": "refiner",
    }.items():
        with pytest.raises(Unsupported) as caught:
            load_pipeline(tmp_path / name, config=str(pipeline_dirs["sdxl"]))
        message = str(caught.value).removeprefix(str(tmp_path / name))
        assert kind in message and "\n" not in message and str(tmp_path / name) in str(caught.value)
    with pytest.raises(
        ValueError,
        match=r"StableDiffusionXLPipeline.*StableDiffusionPipeline.*--config_name_or_path",
    ):
        load_pipeline(tmp_path / "xl.safetensors", config=str(pipeline_dirs["sd1"]))
    with pytest.raises(ValueError, match="--config_name_or_path"):
        load_pipeline(pipeline_dirs["sd1"], config=str(pipeline_dirs["sd1"]))
    with pytest.raises(ValueError, match=r"absent\.safetensors"):
        load_pipeline(tmp_path / "absent.safetensors")


MARKED: dict[str, tuple[dict[str, torch.Tensor], dict[str, str], dict[str, object]]] = {
    "v_pred": ({"v_pred": torch.zeros(0)}, {}, {"prediction_type": "v_prediction"}),
    "ztsnr": (
        {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
        {},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "header": ({}, {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
    "architecture": (
        {},
        {"modelspec.architecture": "stable-diffusion-v2-768-v"},
        {"prediction_type": "v_prediction"},
    ),
    "agreement": (
        {},
        {"modelspec.architecture": "stable-diffusion-v1", "modelspec.prediction_type": "epsilon"},
        {},
    ),
    "unknown": ({}, {"modelspec.architecture": "my-own-merge"}, {}),
}
"""Tensors and header of a checkpoint, and how its scheduler differs from its configs'."""


@pytest.mark.parametrize("kind", MARKED)
def test_a_checkpoint_predicts_what_it_says(
    kind: str, pipeline_dirs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, header, expected = MARKED[kind]
    whole = load_pipeline(pipeline_dirs["sd1"])
    save_original(whole, tmp_path / "plain.safetensors")
    save_file(load_file(tmp_path / "plain.safetensors") | tensors, tmp_path / "model.safetensors", header)
    pipe = load_pipeline(tmp_path / "model.safetensors", config=str(pipeline_dirs["sd1"]))
    before, after = dict(whole.scheduler.config), dict(pipe.scheduler.config)
    assert before["prediction_type"] == "epsilon"
    assert {name: after.get(name) for name in expected} == expected
    unchanged = before.keys() & after.keys() - expected.keys() - {"_class_name"}
    assert {name: before[name] for name in unchanged} == {name: after[name] for name in unchanged}
    said = [record.message for record in caplog.records if "the checkpoint is right" in record.message]
    assert len(said) == len(expected) and all(any(name in message for message in said) for name in expected)
    assert Backbone.of(pipe).deterministic_sampler().config.get("rescale_betas_zero_snr", False) == (
        "rescale_betas_zero_snr" in expected
    )


@pytest.mark.parametrize(
    ("tensors", "header", "why"),
    [
        ({"v_pred": torch.zeros(0)}, {"modelspec.prediction_type": "epsilon"}, "epsilon.*v_prediction"),
        ({}, {"modelspec.prediction_type": "flow"}, "'flow'.*epsilon"),
        (
            {},
            {"modelspec.architecture": "stable-diffusion-xl-v1-base"},
            "stable-diffusion-xl-v1-base.*StableDiffusionPipeline",
        ),
        ({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}, {}, "is a LoRA"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(
    tensors: dict[str, torch.Tensor],
    header: dict[str, str],
    why: str,
    pipeline_dirs: dict[str, Path],
    tmp_path: Path,
) -> None:
    save_original(load_pipeline(pipeline_dirs["sd1"]), tmp_path / "plain.safetensors")
    save_file(load_file(tmp_path / "plain.safetensors") | tensors, tmp_path / "model.safetensors", header)
    with pytest.raises(Unsupported, match=why):
        load_pipeline(tmp_path / "model.safetensors", config=str(pipeline_dirs["sd1"]))


def test_a_checkpoint_without_configs_says_how_to_name_them(
    pipeline_dirs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    save_original(load_pipeline(pipeline_dirs["sd1"]), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="--config_name_or_path") as caught:
        load_pipeline(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


# --- what a base may lack, and may have beside its weights
# ----------------------------------------------------------


def test_what_other_releases_wrote_is_no_damage(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    """A text encoder beside the rest of its CLIP, under an outer name, with indices; old names of a VAE's
    attention."""
    directory, usual = copied(pipeline_dirs["sd1"], tmp_path / "base"), load_pipeline(pipeline_dirs["sd1"])
    (text,) = (directory / "text_encoder").glob("*.safetensors")
    outer = {
        f"text_model.{n.removeprefix('text_model.')}": t.contiguous() for n, t in load_file(text).items()
    }
    beside = {"logit_scale": torch.ones(()), "vision_model.post_layernorm.weight": torch.ones(3)}
    indices = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    save_file(outer | beside | indices, text, {"format": "pt"})
    (vae,) = (directory / "vae").glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    assert any("to_q" in name for name in tensors)
    for new, former in old.items():
        tensors = {name.replace(f".{new}.", f".{former}."): tensor for name, tensor in tensors.items()}
    save_file(tensors, vae, {"format": "pt"})
    for module, theirs in zip(
        Backbone.of(load_pipeline(directory)).modules, Backbone.of(usual).modules, strict=True
    ):
        assert all(torch.equal(module.state_dict()[n], t) for n, t in theirs.state_dict().items())


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_checkpoint_with_more_than_its_configs_have_is_refused(
    part: str, pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    prefix = {"unet": "model.diffusion_model.input_blocks.9", "vae": "first_stage_model.encoder.down.9"}[part]
    save_original(load_pipeline(pipeline_dirs["sd1"]), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    unused = {"model_ema.decay": torch.ones(1), "first_stage_model.loss.logvar": torch.ones(1)}
    save_file(tensors | unused, tmp_path / "model.safetensors")
    load_pipeline(tmp_path / "model.safetensors", config=str(pipeline_dirs["sd1"]))
    save_file(tensors | {f"{prefix}.strange": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{part} of .*{prefix}\.strange.*--config_name_or_path"):
        load_pipeline(tmp_path / "model.safetensors", config=str(pipeline_dirs["sd1"]))
