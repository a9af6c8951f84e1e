"""The flags that save memory, and what they ask for."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import BitsAndBytesConfig

from common.flags import flag
from common.texts import read_text

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of the frozen base, by --mixed_precision."""
UNSUPPORTED = {
    "llm_int8_has_fp16_weight": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "bnb_4bit_quant_storage": "uint8",
}
"""Settings of bitsandbytes that mean nothing for a frozen base on one device, with the only value that is
taken."""


@dataclass(frozen=True)
class MemoryOptions:
    """How memory is saved.

    Attributes:
        quantization: of the frozen UNet, if it is to be quantised.
        offload_models: whether text encoders, VAE and teacher wait in main memory.
        offload_trajectories: whether trajectories are kept there.
    """

    quantization: BitsAndBytesConfig | None = None
    offload_models: bool = False
    offload_trajectories: bool = False


def read_quantization(path: Path) -> dict[str, Any]:
    """The settings in a JSON file, as one writes it by hand or as `BitsAndBytesConfig.to_json_file` does.

    Raises:
        ValueError: it is no such file, or asks for what cannot be done here.
    """
    text = read_text(path, "file of --bnb_quantization_config_path")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--bnb_quantization_config_path {path} is not JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(
            f"--bnb_quantization_config_path {path} must hold a JSON object with the settings of diffusers' BitsAndBytesConfig."
        )
    settings = {
        name: value
        for name, value in settings.items()
        if name not in BitsAndBytesConfig._exclude_attributes_at_init
    }
    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"--bnb_quantization_config_path {path} has unknown keys: {', '.join(unknown)}; the known ones are {', '.join(sorted(known))}."
        )
    for name, only in UNSUPPORTED.items():
        if settings.pop(name, only) != only:
            raise ValueError(
                f"--bnb_quantization_config_path {path}: {name} can only be {json.dumps(only)} here."
            )
    try:
        config = BitsAndBytesConfig(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--bnb_quantization_config_path {path}: {error}.") from error
    if config.load_in_8bit == config.load_in_4bit:
        raise ValueError(
            f"--bnb_quantization_config_path {path} must set load_in_8bit or load_in_4bit to true."
        )
    if config.bnb_4bit_quant_type not in ("nf4", "fp4"):
        raise ValueError(
            f'--bnb_quantization_config_path {path}: bnb_4bit_quant_type is "nf4" or "fp4", not {config.bnb_4bit_quant_type!r}.'
        )
    return settings


def _settings_in(path: Path | None) -> dict[str, Any] | None:
    return None if path is None else read_quantization(path)


@dataclass(frozen=True)
class MemoryConfig:
    """Precision, memory and speed."""

    mixed_precision: str | None = flag(
        None,
        choices=tuple(DTYPES),
        help="Precision of the frozen base; the adapter stays float32. Default: that of `accelerate launch`, else "
        "no.",
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False,
        help="Accepted as diffusers' scripts have it, without effect: PyTorch's own attention saves as much.",
        may_change=True,
    )
    allow_tf32: bool = flag(False, help="Allow TF32 matrix products on NVIDIA GPUs.")
    gradient_checkpointing: bool = flag(
        False, help="Trade about a fifth of the speed of updates for memory.", may_change=True
    )
    channels_last: bool = flag(
        False,
        help="Lay the UNet's convolutions out with the channels last, as tensor cores take them; the result "
        "differs by rounding.",
        may_change=True,
    )
    torch_compile: bool = flag(
        False,
        help="Compile the UNet, which takes minutes before the first iteration; `accelerate launch "
        "--dynamo_backend` and its mates say how.",
        may_change=True,
    )
    offload_models: bool = flag(
        False,
        help="Keep text encoders, VAE and teacher in main memory while they are not in use, and decode one image "
        "at a time, a large one in tiles.",
        may_change=True,
    )
    offload_trajectories: bool = flag(
        False,
        help="Keep trajectories in main memory and bring over a batch at a time; costs hardly any time.",
        may_change=True,
    )
    load_in_8bit: bool = flag(
        False, help="Quantize the Linear layers of the frozen UNet to 8 bits by bitsandbytes (LLM.int8())."
    )
    load_in_4bit: bool = flag(
        False, help="Quantize the Linear layers of the frozen UNet to 4 bits by bitsandbytes (NF4)."
    )
    bnb_quantization_config_path: Path | None = flag(
        None,
        metavar="FILE",
        help="JSON with diffusers' BitsAndBytesConfig, in place of either flag.",
        published=_settings_in,
    )

    @property
    def precision(self) -> str:
        """The precision that was asked for here or of the launcher."""
        return self.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")

    @property
    def quantized(self) -> bool:
        """Whether the frozen UNet is quantized."""
        return bool(self.load_in_8bit or self.load_in_4bit or self.bnb_quantization_config_path)


def memory_options(config: MemoryConfig, device: torch.device) -> MemoryOptions:
    """Check the settings against one another and against the device.

    Raises:
        ValueError: two of them exclude one another, the device cannot do it, or the file cannot be used.
    """
    precision = config.precision
    if precision not in DTYPES:
        raise ValueError(
            f"`accelerate launch --mixed_precision {precision}` is not supported; take one of {', '.join(DTYPES)}."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU; on a CPU take bf16, or leave it out.")
    names = ("load_in_8bit", "load_in_4bit", "bnb_quantization_config_path")
    asked = [name for name in names if getattr(config, name)]
    if len(asked) > 1:
        raise ValueError(
            f"{' and '.join(f'--{name}' for name in asked)} exclude one another; give one of them."
        )
    if asked and precision == "no" and device.type != "cpu":
        raise ValueError(
            f"--{asked[0]} beside --mixed_precision no would keep all but the Linear layers in float32; "
            "add --mixed_precision bf16."
        )
    return MemoryOptions(_quantization(config), config.offload_models, config.offload_trajectories)


def _quantization(config: MemoryConfig) -> BitsAndBytesConfig | None:
    if config.bnb_quantization_config_path:
        settings = read_quantization(config.bnb_quantization_config_path)
    elif config.load_in_8bit or config.load_in_4bit:
        settings = {
            "load_in_8bit": config.load_in_8bit,
            "load_in_4bit": config.load_in_4bit,
            "bnb_4bit_quant_type": "nf4",
        }
    else:
        return None
    return BitsAndBytesConfig(**({"bnb_4bit_compute_dtype": DTYPES[config.precision]} | settings))


def flags_to_try(config: MemoryConfig, batch_size: int | None, on_gpu: bool) -> list[str]:
    """The flags that would save memory and are not given yet, what costs least first.

    Args:
        batch_size: --train_batch_size; None while the base is being loaded.
        on_gpu: what lies in main memory saves none of it on a CPU.
    """
    size = batch_size or 1
    steps = [
        ("--mixed_precision bf16", config.precision == "no"),
        (f"--train_batch_size {size // 2}", size > 4),
        ("--gradient_checkpointing", not config.gradient_checkpointing),
        ("--offload_models", on_gpu and not config.offload_models),
        ("--offload_trajectories", on_gpu and not config.offload_trajectories),
        (f"--train_batch_size {max(1, size // 2)}", 1 < size <= 4),
        ("--load_in_4bit", not config.quantized),
        ("--load_in_4bit in place of --load_in_8bit", config.load_in_8bit),
    ]
    return [flag for flag, helps in steps if helps]
