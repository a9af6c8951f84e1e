"""A whole pipeline with the adapter in its weights, for programs that load no adapters and for sharing."""

from __future__ import annotations

from pathlib import Path

from diffusers import DiffusionPipeline

from common.files import disk_errors
from hub.checks import carriers
from hub.files import filled


def fuse_adapter(pipe: DiffusionPipeline, adapter: str, scale: float = 1.0) -> None:
    """Add a loaded adapter, times `scale`, to the weights and unload it.

    Raises:
        ValueError: the sum is not finite, so the adapter is broken.
    """
    pipe.fuse_lora(carriers(pipe, adapter), lora_scale=scale, adapter_names=[adapter], safe_fusing=True)
    pipe.unload_lora_weights()


def save_pipeline(pipe: DiffusionPipeline, directory: Path, source: str = "") -> None:
    """Write a pipeline as a diffusers directory of safetensors, its `model_index.json` last.

    Args:
        directory: one that does not exist or is empty; it may be a link or a mount point.
        source: the public name of its origin in the configs; diffusers would name a local path.
    """
    for component in pipe.components.values():
        if hasattr(component, "register_to_config"):
            component.register_to_config(_name_or_path=source)
    pipe.register_to_config(_name_or_path=source)
    with filled(directory, DiffusionPipeline.config_name) as aside, disk_errors(directory):
        pipe.save_pretrained(aside, safe_serialization=True)
