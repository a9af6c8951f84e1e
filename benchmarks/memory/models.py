"""Stable Diffusion 1.5 and SDXL with random weights: what they cost does not depend on their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.worlds.canvas.models import build_tokenizer
from reward.predictor import RewardPredictor

TOKENS, VOCABULARY = 77, 49408
PROMPTS = [
    f"a {thing} image in {style} style"
    for style in ("Van Gogh", "Mosaic", "Neon")
    for thing in ("cat", "car", "tree")
]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Model:
    """The configs of a base, as diffusers and transformers call them; what is left out is their default.

    Attributes:
        title: as tables call it.
        latent_size: side of its latents.
        unet, vae: settings of UNet2DConditionModel and AutoencoderKL.
        texts: settings of each text encoder.
        teacher: an architecture of open_clip.
    """

    title: str
    latent_size: int
    unet: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    texts: tuple[dict[str, Any], ...] = ()
    teacher: str = "ViT-B-32"

    def build_unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(sample_size=self.latent_size, **self.unet)

    def build_vae(self) -> AutoencoderKL:
        return AutoencoderKL(sample_size=8 * self.latent_size, **self.vae)

    def build_text_encoders(self) -> list[nn.Module]:
        """The first is a CLIPTextModel, a second has a projection."""
        configs = [
            CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **settings)
            for settings in self.texts
        ]
        return [
            cls(config)
            for cls, config in zip((CLIPTextModel, CLIPTextModelWithProjection), configs, strict=False)
        ]

    def build_predictor(self) -> RewardPredictor:
        return RewardPredictor(
            4, self.latent_size, open_clip.get_model_config(self.teacher)["embed_dim"], prompts=PROMPTS
        )

    def build_teacher(self, device: str = "cpu") -> nn.Module:
        return open_clip.create_model(self.teacher, load_weights=False, device=device)

    def build_pipeline(
        self, dtype: torch.dtype, device: str = "cpu"
    ) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """The base, of random weights."""
        tokenizer = build_tokenizer()
        tokenizer.model_max_length = TOKENS
        with torch.device(device):
            encoders = [encoder.to(dtype) for encoder in self.build_text_encoders()]
            parts = {
                "vae": self.build_vae().to(dtype),
                "unet": self.build_unet().to(dtype),
                "text_encoder": encoders[0],
                "tokenizer": tokenizer,
            }
        if len(encoders) == 2:
            parts |= {"text_encoder_2": encoders[1], "tokenizer_2": tokenizer}
            scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
            return StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
        scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        return StableDiffusionPipeline(
            **parts,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save(self, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write `base`, `reward` and `clip` into the directory: what the training script needs, with
        random weights."""
        torch.manual_seed(0)
        self.build_pipeline(dtype).save_pretrained(directory / "base", safe_serialization=True)
        self.build_predictor().save_pretrained(directory / "reward")
        (directory / "clip").mkdir(parents=True, exist_ok=True)
        save_file(self.build_teacher().state_dict(), directory / "clip" / "open_clip_model.safetensors")
        config = {"model_cfg": open_clip.get_model_config(self.teacher), "preprocess_cfg": {}}
        (directory / "clip" / "open_clip_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


def text(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }
    return sizes | {"bos_token_id": 0, "eos_token_id": 2, **more}


VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
MODELS = {
    "sd15": Model(
        "Stable Diffusion 1.5 at 512 px", 64, {"cross_attention_dim": 768}, VAE, (text(768, 12, 12),)
    ),
    "sdxl": Model(
        "SDXL at 1024 px",
        128,
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        VAE | {"scaling_factor": 0.13025, "force_upcast": True},
        (text(768, 12, 12), text(1280, 32, 20, hidden_act="gelu")),
    ),
}


def saved(name: str, directory: Path) -> Path:
    """The folder of one of `MODELS` within the directory, written if it is not there."""
    if not (directory / name / "clip" / "open_clip_config.json").is_file():  # the last that is written
        MODELS[name].save(directory / name)
    return directory / name


def short_run(directory: Path, images: int) -> list[str]:
    """Arguments of a run of two iterations with a preview after each, on what `Model.save` wrote."""
    given = {
        "concept": "Van Gogh style",
        "pretrained_model_name_or_path": directory / "base",
        "reward_model_name_or_path": directory / "reward",
        "clip_model": f"local-dir:{directory / 'clip'}",
        "max_train_iterations": 2,
        "cooldown_updates": 0,
        "images_per_iteration": images,
        "retain_batch_size": images,
        "retain_rollouts": images,
        "warmup_rollouts": images,
        "num_validation_images": 2,
        "validation_steps": 1,
        "checkpointing_steps": 0,
        "report_to": "none",
        # Random pictures are neither forgotten nor retained: nothing may stop the run or roll it back.
        "target_unlearning_accuracy": 1.1,
        "max_retain_drop": 1e9,
        "max_retain_kl": 1e9,
        "max_step_kl": 1e9,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))] + [
        "--evaluation_seeds"
    ]
