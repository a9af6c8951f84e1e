"""Stable Diffusion 1.5, SDXL, Stable Diffusion 3.5 medium and FLUX.1-dev with random weights: what they cost
does not depend on their weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    ModelMixin,
    SchedulerMixin,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from benchmarks.worlds.canvas.models import build_tokenizer
from pipelines.backbone import NUMBERS, Backbone
from pipelines.parts import CLASSES
from pipelines.supported import OPTIONAL, PARTS
from reward.predictor import RewardPredictor

TOKENS = 77
"""That a CLIP reads of a text."""
PROMPTS = [
    f"a {thing} image in {style} style"
    for style in ("Van Gogh", "Mosaic", "Neon")
    for thing in ("cat", "car", "tree")
]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Kind:
    """What the bases of a class of pipelines have in common.

    Attributes:
        pipeline: the class.
        build_scheduler: makes the scheduler that they come with.
        beside: what else the class is given; a part that is left out is None.
    """

    pipeline: type[DiffusionPipeline]
    build_scheduler: Callable[[], SchedulerMixin]
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> type[Backbone]:
        return Backbone.kinds[self.pipeline]

    @property
    def denoiser(self) -> type[ModelMixin]:
        return self._classes()[self.backbone.component]

    @property
    def text_encoders(self) -> list[type[PreTrainedModel]]:
        """In their order; those that it may go without are last."""
        classes = self._classes()
        return [classes[name] for number in NUMBERS if (name := f"text_encoder{number}") in classes]

    def _classes(self) -> dict[str, Any]:
        """By the names of the parts."""
        parts = PARTS[self.pipeline] | OPTIONAL.get(self.pipeline, {})
        return {part: CLASSES[of] for part, of in parts.items()}


SD = Kind(
    StableDiffusionPipeline,
    partial(DDIMScheduler, **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
XL = Kind(
    StableDiffusionXLPipeline,
    partial(EulerDiscreteScheduler, **BETAS, timestep_spacing="leading", steps_offset=1),
    {"add_watermarker": False},
)
SD3 = Kind(
    StableDiffusion3Pipeline,
    partial(FlowMatchEulerDiscreteScheduler, shift=3.0),
    {"text_encoder_3": None, "tokenizer_3": None},
)
FLUX = Kind(FluxPipeline, partial(FlowMatchEulerDiscreteScheduler, shift=3.0, use_dynamic_shifting=True))


@dataclass(frozen=True)
class Model:
    """The configs of a base, as diffusers and transformers call them; what is left out is their default.

    Attributes:
        title: as tables call it.
        latent_size: side of its latents.
        denoiser, vae: settings of its UNet or transformer, and of its AutoencoderKL.
        texts: settings of each text encoder.
        kind: by which everything else is made.
        teacher: an architecture of open_clip.
    """

    title: str
    latent_size: int
    denoiser: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    texts: tuple[dict[str, Any], ...] = ()
    kind: Kind = SD
    teacher: str = "ViT-B-32"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.vae.get("latent_channels", 4), self.latent_size, self.latent_size

    def build_denoiser(self) -> ModelMixin:
        return self.kind.denoiser(**self.denoiser)

    def build_vae(self) -> AutoencoderKL:
        return AutoencoderKL(sample_size=8 * self.latent_size, **self.vae)

    def build_text_encoders(self) -> list[PreTrainedModel]:
        pairs = zip(self.kind.text_encoders, self.texts, strict=False)
        return [cls(cls.config_class(**settings)) for cls, settings in pairs]

    def build_predictor(self) -> RewardPredictor:
        channels, size, _ = self.latent_shape
        embed_dim = open_clip.get_model_config(self.teacher)["embed_dim"]
        return RewardPredictor(channels, size, embed_dim, prompts=PROMPTS)

    def build_teacher(self, device: str = "cpu") -> nn.Module:
        return open_clip.create_model(self.teacher, load_weights=False, device=device)

    def build_pipeline(self, dtype: torch.dtype, device: str = "cpu") -> DiffusionPipeline:
        """The base, of random weights."""
        with torch.device(device):
            parts: dict[str, Any] = {
                "vae": self.build_vae().to(dtype),
                self.kind.backbone.component: self.build_denoiser().to(dtype),
            }
            encoders = [encoder.to(dtype) for encoder in self.build_text_encoders()]
        for number, encoder in zip(NUMBERS, encoders, strict=False):
            parts |= {f"text_encoder{number}": encoder, f"tokenizer{number}": tokenizer_for(encoder)}
        pipe = self.kind.pipeline(**{**self.kind.beside, **parts}, scheduler=self.kind.build_scheduler())
        Backbone.of(pipe).resize(self.latent_size)
        return pipe

    def save(self, directory: Path, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> None:
        """Write `base`, `reward` and `clip` into the directory: what the training script needs, with
        random weights.

        Args:
            device: where those of `base` are drawn; billions of them take minutes on a CPU.
        """
        torch.manual_seed(0)
        self.build_pipeline(dtype, device).save_pretrained(directory / "base", safe_serialization=True)
        self.build_predictor().save_pretrained(directory / "reward")
        (directory / "clip").mkdir(parents=True, exist_ok=True)
        save_file(self.build_teacher().state_dict(), directory / "clip" / "open_clip_model.safetensors")
        config = {"model_cfg": open_clip.get_model_config(self.teacher), "preprocess_cfg": {}}
        (directory / "clip" / "open_clip_config.json").write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )


def t5_tokenizer(words: Sequence[str] = ()) -> T5Tokenizer:
    """Of pieces of one character each, and these words whole."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    pieces += [f"▁{word}" for word in words]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def tokenizer_for(encoder: PreTrainedModel) -> PreTrainedTokenizerBase:
    """A tokenizer of the class that a text encoder takes, with words of few letters: all that is looked at
    is how many tokens a text is padded to."""
    if isinstance(encoder, T5EncoderModel):
        return t5_tokenizer()
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def text(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """Settings of a CLIP's text encoder."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }
    return sizes | {"bos_token_id": 0, "eos_token_id": 2, **more}


CLIP_L, CLIP_G = text(768, 12, 12), text(1280, 32, 20, hidden_act="gelu")
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
FLOW_VAE = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SD35_MEDIUM = Model(
    "Stable Diffusion 3.5 medium at 1024 px",
    128,
    {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    FLOW_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    (CLIP_L, CLIP_G, T5_XXL),
    SD3,
)
MODELS = {
    "sd15": Model(
        "Stable Diffusion 1.5 at 512 px",
        64,
        {"sample_size": 64, "cross_attention_dim": 768},
        VAE,
        (CLIP_L,),
    ),
    "sdxl": Model(
        "SDXL at 1024 px",
        128,
        {
            "sample_size": 128,
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
        (CLIP_L, CLIP_G),
        XL,
    ),
    "sd35-medium": SD35_MEDIUM,
    "sd35-medium-without-t5": replace(
        SD35_MEDIUM,
        title="Stable Diffusion 3.5 medium at 1024 px, without T5",
        texts=(CLIP_L, CLIP_G),
    ),
    "flux-dev": Model(
        "FLUX.1-dev at 1024 px",
        128,
        {"guidance_embeds": True},
        FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        (CLIP_L, T5_XXL),
        FLUX,
    ),
}


def saved(name: str, directory: Path, models: Mapping[str, Model] = MODELS, device: str = "cpu") -> Path:
    """The folder of a model within the directory, written if it is not there.

    Args:
        models: by name.
        device: where its weights are drawn.
    """
    if not (directory / name / "clip" / "open_clip_config.json").is_file():  # the last that is written
        models[name].save(directory / name, device=device)
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
        "num_vocabulary_prompts": 0,
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
