"""A small Stable Diffusion 3: joint attention and flow matching, on the latents of another pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.worlds.canvas.fit import fit, muon
from benchmarks.worlds.canvas.models import TEXT_LENGTH, Captions, build_tokenizer
from pipelines.backbone import Backbone

TEXT_WIDTHS = (48, 48)
LAYERS, HEADS, HEAD_WIDTH = 4, 4, 24
BATCH, UNTOLD = 64, 0.1
LEARNING_RATE, EMA = 2e-3, 0.999


def build_pipeline(vae: AutoencoderKL, size: int) -> StableDiffusion3Pipeline:
    """With random weights, two CLIPs and no T5. A number of the latent's plane is a token: a small image has
    few.

    Args:
        size: side of a latent.
    """
    tokenizers = [build_tokenizer() for _ in TEXT_WIDTHS]
    encoders = [text_encoder(*each) for each in zip(tokenizers, TEXT_WIDTHS, strict=True)]
    transformer = SD3Transformer2DModel(
        sample_size=size,
        patch_size=1,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=sum(TEXT_WIDTHS),
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=size,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


def text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """Of three layers: this pipeline takes the states before the last one."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    pipe: StableDiffusion3Pipeline,
    latents: tuple[torch.Tensor, torch.Tensor],
    captions: Captions,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
) -> None:
    """Train transformer and text encoders together, in place, to predict the velocity; most often at middle
    noise levels, as Stable Diffusion 3 was (Esser et al., 2024, https://arxiv.org/abs/2403.03206).

    Args:
        latents: mean and standard deviation of each image's, scaled, (N, channels, h, w) each.
    """
    backbone, (mean, std) = Backbone.of(pipe), latents
    trained = nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(mean), (BATCH,), generator=generator)
        untold = (torch.rand(BATCH, generator=generator) < UNTOLD).tolist()
        texts = captions(index, generator)
        told = backbone.encode(["" if drop else text for text, drop in zip(texts, untold, strict=True)])
        x0 = mean[index] + std[index] * torch.randn(std[index].shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        sigma = compute_density_for_timestep_sampling("logit_normal", BATCH, 0.0, 1.0, generator=generator)
        at = sigma[:, None, None, None]
        velocity = backbone.output((1 - at) * x0 + at * noise, 1000 * sigma, told, 1.0)
        return (velocity - (noise - x0)).square().mean()

    fit(
        "sd3",
        trained,
        loss_fn,
        muon(LEARNING_RATE),
        steps=steps,
        state_dir=state_dir,
        seed=seed,
        ema_decay=EMA,
    )
