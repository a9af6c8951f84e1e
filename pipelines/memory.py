"""The flags that save memory, and what they ask for."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import BitsAndBytesConfig

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


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `memory_options` reads."""
    parser.add_argument(
        "--offload_models",
        action="store_true",
        help="Keep text encoders, VAE and teacher in main memory while they are not in use, and decode one image at a time, a large one in tiles.",
    )
    parser.add_argument(
        "--offload_trajectories",
        action="store_true",
        help="Keep trajectories in main memory and bring over a batch at a time; costs hardly any time.",
    )
    parser.add_argument(
        "--load_in_8bit",
        action="store_true",
        help="Quantise the Linear layers of the frozen UNet to 8 bits by bitsandbytes (LLM.int8()).",
    )
    parser.add_argument(
        "--load_in_4bit",
        action="store_true",
        help="Quantise the Linear layers of the frozen UNet to 4 bits by bitsandbytes (NF4).",
    )
    parser.add_argument(
        "--bnb_quantization_config_path",
        type=Path,
        metavar="FILE",
        help="JSON with diffusers' BitsAndBytesConfig, in place of either flag.",
    )


def memory_options(args: argparse.Namespace, device: torch.device) -> MemoryOptions:
    """Check the flags of `add_memory_arguments` and --mixed_precision against one another and against the
    device.

    Raises:
        ValueError: two of them exclude one another, the device cannot do it, or the file cannot be used.
    """
    if args.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU; on a CPU take bf16, or leave it out.")
    asked = [
        flag
        for flag in ("load_in_8bit", "load_in_4bit", "bnb_quantization_config_path")
        if getattr(args, flag)
    ]
    if len(asked) > 1:
        raise ValueError(
            f"{' and '.join(f'--{flag}' for flag in asked)} exclude one another; give one of them."
        )
    if asked and args.mixed_precision == "no" and device.type != "cpu":
        raise ValueError(
            f"--{asked[0]} beside --mixed_precision no would keep all but the Linear layers in float32; add --mixed_precision bf16."
        )
    return MemoryOptions(_quantization(args), args.offload_models, args.offload_trajectories)


def _quantization(args: argparse.Namespace) -> BitsAndBytesConfig | None:
    if args.bnb_quantization_config_path:
        settings = read_quantization(args.bnb_quantization_config_path)
    elif args.load_in_8bit or args.load_in_4bit:
        settings = {
            "load_in_8bit": args.load_in_8bit,
            "load_in_4bit": args.load_in_4bit,
            "bnb_4bit_quant_type": "nf4",
        }
    else:
        return None
    return BitsAndBytesConfig(**({"bnb_4bit_compute_dtype": DTYPES[args.mixed_precision]} | settings))


def read_quantization(path: Path) -> dict[str, Any]:
    """The settings in a JSON file, as one writes it by hand or as `BitsAndBytesConfig.to_json_file` does.

    Raises:
        ValueError: it is no such file, or asks for what cannot be done here.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"--bnb_quantization_config_path {path} cannot be read: {error.strerror}."
        ) from error
    except ValueError as error:
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
