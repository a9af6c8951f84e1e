"""Random pipelines of every class that is supported, small enough to draw in milliseconds: 4-channel
latents, images twice as large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from open_clip.tokenizer import bytes_to_unicode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from benchmarks.memory.models import t5_tokenizer
from benchmarks.worlds.canvas.models import build_scheduler, build_text_encoder, build_tokenizer

TINY_PROMPTS = [
    f"a {thing} image in {style} style"
    for style in ("Van Gogh", "Mosaic", "Neon")
    for thing in ("cat", "car", "tree")
]
"""What the tiny reward predictors say their base draws."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def random_vae(latent_size: int | tuple[int, int], **settings: Any) -> AutoencoderKL:
    size = latent_size if isinstance(latent_size, int) else max(latent_size)
    usual = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(sample_size=2 * size, **(usual | settings))


def random_unet(latent_size: int | tuple[int, int], text_width: int, **settings: Any) -> UNet2DConditionModel:
    usual = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(sample_size=latent_size, cross_attention_dim=text_width, **(usual | settings))


def text_config(tokenizer: CLIPTokenizer, width: int, projection_dim: int) -> CLIPTextConfig:
    """As OpenCLIP's text encoders are: GELU, and a projection."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        projection_dim=projection_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_sd1(directory: Path, latent_size: int | tuple[int, int] = 8, text_width: int = 16) -> None:
    """Stable Diffusion 1.x: epsilon, CLIP's text encoder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(tokenizer, width=text_width)
    vae = random_vae(latent_size)
    save_sd(directory, tokenizer, text_encoder, vae, random_unet(latent_size, text_width), build_scheduler())


def save_sd2(directory: Path) -> None:
    """Stable Diffusion 2.x: velocity, zero terminal SNR, OpenCLIP's text encoder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(text_config(tokenizer, width=16, projection_dim=12))
    unet = random_unet(8, 16, attention_head_dim=(2, 4), use_linear_projection=True)
    scheduler = DDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    save_sd(directory, tokenizer, text_encoder, random_vae(8), unet, scheduler)


def save_sd(
    directory: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> None:
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory, safe_serialization=True)


def save_sdxl(
    directory: Path, latent_size: int | tuple[int, int] = 8, force_zeros_for_empty_prompt: bool = True
) -> None:
    """SDXL base: two text encoders whose tokenizers pad differently, sizes and a pooled embedding, the
    blocks of its UNet, its Euler sampler."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = build_tokenizer(), build_tokenizer()
    tokenizer_2.pad_token = "!"
    width, width_2, projection_dim, time_dim = 16, 24, 20, 8
    unet = random_unet(
        latent_size,
        width + width_2,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=6 * time_dim + projection_dim,
    )
    StableDiffusionXLPipeline(
        vae=random_vae(latent_size, scaling_factor=0.13025, force_upcast=True),
        unet=unet,
        text_encoder=CLIPTextModel(text_config(tokenizer, width, projection_dim)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, width_2, projection_dim)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    ).save_pretrained(directory, safe_serialization=True)


def build_t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    """Pieces of one character each and some words, and an encoder of one layer."""
    tokenizer = t5_tokenizer(("image", "love", "time", "today", "great", "world", "home", "night"))
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=2 * width, num_layers=1, num_heads=2
    )
    return tokenizer, T5EncoderModel(config)


def flow_vae(latent_size: int) -> AutoencoderKL:
    """16 channels, shifted, without the convolutions around the latent."""
    settings = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    return random_vae(latent_size, use_quant_conv=False, use_post_quant_conv=False, **settings)


def save_sd3(directory: Path, latent_size: int = 8, t5: bool = True) -> None:
    """Stable Diffusion 3: joint attention, two CLIPs, and a T5 unless it is left out."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = build_tokenizer(), build_tokenizer()
    width, width_2, joint = 16, 24, 48
    tokenizer_3, text_encoder_3 = build_t5(joint) if t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=latent_size,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=joint,
        pooled_projection_dim=width + width_2,
        pos_embed_max_size=latent_size,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(latent_size),
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizer, width, width)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, width_2, width_2)),
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(directory, safe_serialization=True)


def save_flux(directory: Path, guidance_embeds: bool = True) -> None:
    """FLUX.1: packed latents, and guidance that the transformer is told."""
    torch.manual_seed(0)
    tokenizer, width = build_tokenizer(), 16
    tokenizer_2, text_encoder_2 = build_t5(32)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=width,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        vae=flow_vae(128),
        text_encoder=CLIPTextModel(text_config(tokenizer, width, width)),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    ).save_pretrained(directory, safe_serialization=True)


def build_qwen(width: int) -> tuple[Qwen2Tokenizer, Qwen3Model]:
    """Bytes for tokens, what is said between marks, and a language model of two layers."""
    tokens = [*bytes_to_unicode().values(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=1024
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return tokenizer, Qwen3Model(config)


def save_z_image(directory: Path) -> None:
    """Z-Image: a language model's states, as many as the prompt has tokens, in one stream with the image."""
    torch.manual_seed(0)
    tokenizer, text_encoder = build_qwen(16)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad)
    ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(128),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    ).save_pretrained(directory, safe_serialization=True)


BACKBONES: dict[str, Callable[[Path], None]] = {"sd1": save_sd1, "sd2": save_sd2, "sdxl": save_sdxl}
FLOWS: dict[str, Callable[[Path], None]] = {
    "sd3": save_sd3,
    "flux": save_flux,
    "z-image": save_z_image,
}
"""Flow-matching transformers."""
