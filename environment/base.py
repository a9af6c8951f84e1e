"""The base pipeline: loading, prompt encoding, decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase


def load_pipeline(
    name_or_path: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    safety_checker: bool = False,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline from a diffusers directory or a Hub id, safetensors only, its safety checker left out unless asked for.

    Raises:
        ValueError: there is no such pipeline, or it is of another class.
    """
    path = Path(name_or_path)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(f"{name_or_path} is not a diffusers pipeline: it holds no model_index.json.")
    left_out = {} if safety_checker else {"safety_checker": None}
    try:
        pipe = DiffusionPipeline.from_pretrained(str(name_or_path), revision=revision, variant=variant, dtype=dtype, use_safetensors=True, **left_out)
    except (OSError, ValueError, HFValidationError, AttributeError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The pipeline {name_or_path} could not be loaded (a diffusers directory or Hub id with safetensors): {reason}") from error
    if not isinstance(pipe, StableDiffusionPipeline):
        raise ValueError(f"{name_or_path} is a {type(pipe).__name__}; pipelines of the class StableDiffusionPipeline are supported.")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_window(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Refuse a text that the tokenizer would cut off.

    Raises:
        ValueError: it needs more tokens than the window holds.
    """
    used, window = len(tokenizer(text, truncation=False).input_ids), tokenizer.model_max_length
    if used > window:
        shown = text if len(text) < 80 else text[:77] + "..."
        raise ValueError(f'"{shown}" needs {used} tokens and the base model\'s tokenizer holds {window}; use fewer words.')


@torch.no_grad()
def encode_prompts(pipe: StableDiffusionPipeline, prompts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Text-encoder states (N, L, E), as the pipeline itself makes them."""
    for prompt in prompts:
        check_window(pipe.tokenizer, prompt)
    chunks = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    return torch.cat([pipe.encode_prompt(chunk, pipe.device, 1, do_classifier_free_guidance=False)[0] for chunk in chunks])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], float32."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
    return torch.cat([vae.decode(chunk).sample.float() for chunk in scaled.split(batch_size)]).clamp(-1, 1)


def sample_size(pipe: StableDiffusionPipeline) -> int:
    """Side of the UNet's latent."""
    size = pipe.unet.config.sample_size
    return size if isinstance(size, int) else max(size)
