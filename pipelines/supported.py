"""Which bases can be trained: told from their configs and the header of a checkpoint, before any weights
are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from safetensors import SafetensorError, safe_open

from common.files import why_unreadable


class Unsupported(ValueError):
    """A base that cannot be trained; the message says what it is and what can."""


PARTS: dict[type, dict[str, str]] = {
    StableDiffusionXLPipeline: {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    StableDiffusionPipeline: {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    },
    StableDiffusion3Pipeline: {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    FluxPipeline: {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    ZImagePipeline: {
        "transformer": "ZImageTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "Qwen3Model",
    },
}
"""The parts by which a pipeline of any name is told to be one of these, the more demanding first."""
OPTIONAL: dict[type, dict[str, str]] = {StableDiffusion3Pipeline: {"text_encoder_3": "T5EncoderModel"}}
"""Parts that a pipeline may go without."""
BESIDE = {
    *("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder_3"),
    *("safety_checker", "feature_extractor", "image_encoder"),
}
"""What else such a pipeline may have."""
SUPPORTED = (
    "supported are StableDiffusionPipeline (Stable Diffusion 1.x and 2.x), StableDiffusionXLPipeline (SDXL base), "
    "StableDiffusion3Pipeline (Stable Diffusion 3.x), FluxPipeline (FLUX.1) and ZImagePipeline (Z-Image), and pipelines of other names that are "
    "made of the same parts."
)
IMAGE_INPUTS = {
    5: "a depth-to-image UNet, which also takes a depth map",
    7: "an upscaling UNet, which also takes a small image",
    8: "an instruct-pix2pix UNet, which also takes the image to be edited",
    9: "an inpainting UNet, which also takes a mask and the masked image",
}
"""By input channels, of which a text-to-image UNet has the latent's four."""


def choose_class(name: str | Path, index: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """The class to load a diffusers pipeline with.

    Args:
        name: what messages call it.
        index: its model_index.json.

    Raises:
        Unsupported: it is made of other parts, needs code of its own, or has parts that training would leave
            out; the message lists what is supported.
    """
    kind = index.get("_class_name")
    if isinstance(kind, list):
        raise Unsupported(
            f"{name} needs code from its own repository ({kind[0]}.py), which is never run; {SUPPORTED}"
        )
    parts = {
        part: tuple(value)
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    if {"unet", "text_encoder_2"} <= parts.keys() and "text_encoder" not in parts:
        raise Unsupported(
            f"{name} is an SDXL refiner, which draws on from images and not from texts alone; {SUPPORTED}"
        )
    for cls, needed in PARTS.items():
        if all(parts.get(part, ("", ""))[1] == of for part, of in needed.items()):
            strange = sorted(parts.keys() - needed.keys() - BESIDE)
            if strange:
                raise Unsupported(
                    f"{name} is a {kind} with a {strange[0]}, which training would leave out; {SUPPORTED}"
                )
            return cls
    nearest = StableDiffusion3Pipeline if "transformer" in parts else StableDiffusionPipeline
    for cls in (FluxPipeline, ZImagePipeline):
        if parts.get("transformer", ("", ""))[1] == PARTS[cls]["transformer"]:
            nearest = cls
    for part, of in PARTS[nearest].items():
        if part not in parts:
            raise Unsupported(f"{name} is a {kind} without a {part}; {SUPPORTED}")
        if parts[part][1] != of:
            raise Unsupported(f"{name} is a {kind} with a {part} of the class {parts[part][1]}; {SUPPORTED}")
    raise AssertionError("a pipeline with all of the parts has a class")


def check_unet(name: str | Path, config: Mapping[str, Any], cls: type) -> None:
    """Refuse a UNet that takes something else than latent, timestep and text.

    Args:
        name: what messages call the base.
        config: the UNet's.
        cls: the pipeline's class.

    Raises:
        Unsupported: what it takes, or that it is quantised.
    """
    check_full_precision(name, "UNet", config)
    check_channels(name, config["in_channels"], config["out_channels"])
    if config.get("time_cond_proj_dim"):
        raise Unsupported(
            f"{name} has a UNet that is told the guidance scale (a latent consistency model); {SUPPORTED}"
        )
    added = "text_time" if cls is StableDiffusionXLPipeline else None
    for setting, usual in (
        ("addition_embed_type", added),
        ("class_embed_type", None),
        ("encoder_hid_dim_type", None),
    ):
        if config.get(setting) != usual:
            raise Unsupported(
                f"{name} has a UNet whose {setting} is {config.get(setting)}, not {usual}, as a {cls.__name__} needs; {SUPPORTED}"
            )


def check_transformer(
    name: str | Path, config: Mapping[str, Any], scheduler: str, cls: type[DiffusionPipeline]
) -> None:
    """Refuse a transformer that takes something else than latent, noise level and text, and a scheduler that
    samples no flow.

    Args:
        name: what messages call the base.
        config: the transformer's.
        scheduler: the class of the base's scheduler.
        cls: the pipeline's class.

    Raises:
        Unsupported: what is in the way.
    """
    check_full_precision(name, "transformer", config)
    given, made = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if given != made:
        raise Unsupported(
            f"{name} has a transformer with {given} input and {made} output channels, which also takes an image "
            f"(fill, depth, canny); {SUPPORTED}"
        )
    if scheduler != FlowMatchEulerDiscreteScheduler.__name__:
        raise Unsupported(
            f"{name} is a {cls.__name__} with the scheduler {scheduler}, which is not supported; it needs a "
            f"{FlowMatchEulerDiscreteScheduler.__name__}."
        )


def check_full_precision(name: str | Path, part: str, config: Mapping[str, Any]) -> None:
    """Refuse a network whose weights are stored quantised.

    Raises:
        Unsupported: it is; the message says what to do.
    """
    if (quantised := config.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise Unsupported(
            f"{name} has a {part} that is quantised already ({method or 'it does not say how'}), which cannot be "
            "trained here; name the full base, and add --load_in_8bit or --load_in_4bit."
        )


def check_channels(name: str | Path, channels: int, latent_channels: int) -> None:
    """Refuse a UNet that takes more than the latent.

    Raises:
        Unsupported: what it takes.
    """
    if channels != latent_channels:
        found = IMAGE_INPUTS.get(
            channels, f"a UNet with {channels} input channels and {latent_channels} output channels"
        )
        raise Unsupported(f"{name} has {found}; {SUPPORTED}")


FIRST = {
    StableDiffusionXLPipeline: (
        ("conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",),
        ("conditioner.embedders.1.model.positional_embedding",),
    ),
    StableDiffusionPipeline: (
        (
            "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
            "cond_stage_model.model.token_embedding.weight",
        ),
    ),
}
"""For each text encoder of a class, the tensors by which diffusers finds it in a checkpoint: one of them. If
there is none, it loads the text encoder that lies beside the configs."""


def class_of_checkpoint(path: Path) -> type[DiffusionPipeline]:
    """The class of a checkpoint in one file, told from its tensors' names and shapes; none of them is read.

    Raises:
        Unsupported: it is not safetensors, or not of a whole base that is supported.
    """
    if path.suffix.casefold() != ".safetensors":
        raise Unsupported(
            f"{path} may be a pickle, which can run any code when it is read; convert it to .safetensors, or find it as such."
        )
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            first, last = (
                "model.diffusion_model.input_blocks.0.0.weight",
                "model.diffusion_model.out.2.weight",
            )
            channels = [file.get_slice(key).get_shape() for key in (first, last) if key in names]
    except (OSError, SafetensorError) as error:
        raise Unsupported(
            f"{path} is not a readable safetensors file: {why_unreadable(path, error)}"
        ) from error
    if any("lora_" in name or ".lora." in name for name in names):
        raise Unsupported(f"{path} is a LoRA, not a base; name the base that it is for.")
    if any(".joint_blocks." in name or "double_blocks." in name for name in names):
        raise Unsupported(
            f"{path} is a transformer of Stable Diffusion 3 or FLUX in one file, without all of its parts; give the "
            "diffusers directory or the Hub id of the base."
        )
    if len(channels) < 2 or any(len(shape) != 4 for shape in channels):
        raise Unsupported(f"{path} holds no UNet of Stable Diffusion in the original layout; {SUPPORTED}")
    check_channels(path, channels[0][1], channels[1][0])
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        _check_first(path, names, StableDiffusionXLPipeline)
        return StableDiffusionXLPipeline
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        raise Unsupported(
            f"{path} is an SDXL refiner, which draws on from images and not from texts alone; {SUPPORTED}"
        )
    if any(name.startswith("cond_stage_model.") for name in names):
        _check_first(path, names, StableDiffusionPipeline)
        return StableDiffusionPipeline
    raise Unsupported(
        f"{path} holds a UNet without its text encoder; a checkpoint of the whole base is needed."
    )


def _check_first(path: Path, names: set[str], cls: type) -> None:
    for first in FIRST[cls]:
        if names.isdisjoint(first):
            raise Unsupported(
                f"{path} lacks a tensor of its text encoder ({' or '.join(first)}); a checkpoint of the whole base is "
                "needed."
            )
