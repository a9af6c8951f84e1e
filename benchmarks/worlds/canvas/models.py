"""The models of a small world and how each is trained: autoencoder, denoiser, CLIP, judge.

Everything here is given images, captions and sizes; nothing knows the drawings, so any set of small
captioned images will do.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.worlds.canvas.fit import Recipe, adamw, fit
from evaluation.judge import Judge

Captions = Callable[[torch.Tensor, torch.Generator], list[str]]
"""Image indices (B,) and a generator -> one caption for each image."""

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Reconstructions and images (B, 3, H, W) in [-1, 1] -> a scalar, the less the better."""

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Images (B, 3, H, W) in [-1, 1] and a generator -> the same shape, changed at random."""

VOCABULARY = 2048
TEXT_LENGTH = 32
CLIP_RESNET = {"layers": [1, 1, 1, 1], "width": 12}
AUTOENCODER, DECODER, DENOISER = adamw(2e-3), adamw(1e-3), adamw(1.5e-3)
CLIP, JUDGE = adamw(2e-3, weight_decay=0.05), adamw(3e-3, weight_decay=0.05)
"""How each is trained unless another recipe is given."""


def pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def as_they_are(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """No augmentation."""
    return x


def _batch(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(count, (size,), generator=generator)


# --- text ---------------------------------------------------------------------------------------------


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's own byte-level BPE with its first merges only: any text is tokenised, rare words into more
    pieces."""
    with gzip.open(
        Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8"
    ) as file:
        lines = file.read().split("\n")[1:]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    merges = [tuple(line.split()) for line in lines[: VOCABULARY - 2 * len(letters) - 2]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int = 2) -> CLIPTextConfig:
    """Of a CLIP text encoder for this tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 64) -> CLIPTextModel:
    return CLIPTextModel(text_config(tokenizer, width))


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    ).input_ids


# --- pipeline -----------------------------------------------------------------------------------------


def coarse_distance(reconstruction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error of images (B, 3, H, W), and absolute error at half the resolution."""
    coarse = F.l1_loss(F.avg_pool2d(reconstruction, 2), F.avg_pool2d(x, 2))
    return F.mse_loss(reconstruction, x) + F.l1_loss(reconstruction, x) + coarse


def train_autoencoder(
    images: torch.Tensor,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    channels: tuple[int, ...] = (24, 48, 48),
    latent_channels: int = 4,
    batch_size: int = 32,
    distance: Distance = coarse_distance,
    recipe: Recipe = AUTOENCODER,
    device: str = "cpu",
) -> AutoencoderKL:
    """AutoencoderKL from (N, 3, H, W) uint8 images to latents, half the resolution for each of `channels` but
    the first.

    Args:
        distance: of reconstructions from images, which training lowers.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        norm_num_groups=8,
        sample_size=images.shape[-1],
    ).to(device)

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        x = pixels(images[_batch(len(images), batch_size, generator)]).to(device)
        posterior = vae.encode(x).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return distance(reconstruction, x) + 1e-4 * kl

    fit("autoencoder", vae, loss_fn, recipe, steps=steps, state_dir=state_dir, seed=seed)
    with torch.no_grad():
        sample = vae.encode(pixels(images[:512]).to(device)).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / sample.std()))
    return vae


def train_decoder(
    vae: AutoencoderKL,
    images: torch.Tensor,
    latents: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    batch_size: int = 16,
    distance: Distance = coarse_distance,
    recipe: Recipe = DECODER,
) -> None:
    """Train what draws latents further, in place. Latents stay what they are, and so does whatever was
    trained on them.

    Args:
        latents: of the images, as `encode` has them.
    """
    device = next(vae.parameters()).device
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    mean, std = latents

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = _batch(len(images), batch_size, generator)
        sample = mean[index] + std[index] * torch.randn(std[index].shape, generator=generator).to(mean.device)
        reconstruction = vae.decode(sample.to(device) / vae.config.scaling_factor).sample
        return distance(reconstruction, pixels(images[index]).to(device))

    fit("decoder", decoder, loss_fn, recipe, steps=steps, state_dir=state_dir, seed=seed, ema_decay=0.999)


@torch.no_grad()
def encode(
    vae: AutoencoderKL, images: torch.Tensor, batch_size: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each image's scaled latent, (N, channels, h, w) each."""
    device = next(vae.parameters()).device
    dists = [vae.encode(pixels(chunk).to(device)).latent_dist for chunk in images.split(batch_size)]
    scale = vae.config.scaling_factor
    return scale * torch.cat([d.mean for d in dists]), scale * torch.cat([d.std for d in dists])


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def min_snr_weights(scheduler: DDIMScheduler, t: torch.Tensor, gamma: float) -> torch.Tensor:
    """(B,) timesteps -> the weights min(SNR, gamma) / SNR of their errors in the noise (Hang et al., 2023,
    https://arxiv.org/abs/2303.09556)."""
    return (gamma / compute_snr(scheduler, t)).clamp(max=1)


def build_networks(
    latent_shape: Sequence[int],
    tokenizer: CLIPTokenizer,
    channels: tuple[int, int],
    layers_per_block: int,
    text_width: int,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """A UNet for latents (C, h, w) and the text encoder that it is told by, with random weights."""
    text_encoder = build_text_encoder(tokenizer, text_width)
    unet = UNet2DConditionModel(
        sample_size=latent_shape[-1],
        in_channels=latent_shape[0],
        out_channels=latent_shape[0],
        block_out_channels=channels,
        layers_per_block=layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return unet, text_encoder


def train_denoiser(
    latents: tuple[torch.Tensor, torch.Tensor],
    captions: Captions,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    channels: tuple[int, int] = (48, 96),
    layers_per_block: int = 1,
    text_width: int = 64,
    batch_size: int = 64,
    recipe: Recipe = DENOISER,
    snr_gamma: float | None = None,
    begun: tuple[UNet2DConditionModel, CLIPTextModel] | None = None,
    device: str = "cpu",
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """UNet and text encoder, trained together to predict the noise, captions dropped one time in ten.

    Args:
        begun: those that are trained further; by default new ones are made.
        snr_gamma: of `min_snr_weights`; by default all timesteps count alike.
    """
    torch.manual_seed(seed)
    unet, text_encoder = begun or build_networks(
        latents[0].shape[1:], tokenizer, channels, layers_per_block, text_width
    )
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    scheduler = build_scheduler()
    mean, std = latents

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = _batch(len(mean), batch_size, generator)
        texts = captions(index, generator)
        dropped = torch.rand(batch_size, generator=generator) < 0.1
        ids = tokenize(
            tokenizer, ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]
        )
        x0 = mean[index] + std[index] * torch.randn(std[index].shape, generator=generator).to(mean.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noisy = scheduler.add_noise(x0, noise, t.to(x0.device))
        context = text_encoder(ids.to(device))[0]
        errors = (
            (unet(noisy.to(device), t.to(device), context).sample - noise.to(device)).square().mean((1, 2, 3))
        )
        weights = torch.ones(batch_size) if snr_gamma is None else min_snr_weights(scheduler, t, snr_gamma)
        return (weights.to(device) * errors).mean()

    fit(
        "denoiser",
        both,
        loss_fn,
        recipe,
        steps=steps,
        state_dir=state_dir,
        seed=seed,
        ema_decay=0.999,
    )
    return unet, text_encoder


def save_pipeline(
    directory: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write an ordinary diffusers directory; UNet and autoencoder in half precision, which
    `from_pretrained` widens again. Where they were read from is not in it."""
    for network in (vae, unet):
        network.register_to_config(_name_or_path="")
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(directory, safe_serialization=True)


# --- CLIP ---------------------------------------------------------------------------------------------


def train_clip(
    images: torch.Tensor,
    captions: Captions,
    tokenizer: CLIPTokenizer,
    output_dir: Path,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    augment: Augment = as_they_are,
    tower: Mapping[str, Any] = CLIP_RESNET,
    batch_size: int = 128,
    recipe: Recipe = CLIP,
    device: str = "cpu",
) -> None:
    """A small open_clip model with a transformer for texts, saved in its `local-dir:` format.

    Args:
        tower: of images, as open_clip's `vision_cfg` has it, but for their side.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    model_cfg = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": images.shape[-1], **tower},
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "width": 64,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "tokenizer",
        },
    }
    preprocess_cfg = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg).to(device)

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = _batch(len(images), batch_size, generator)
        # Captions repeat within a batch: each is read once, and an image belongs to every copy of its own.
        ids, which = tokenize(tokenizer, captions(index, generator)).unique(dim=0, return_inverse=True)
        image, text, scale = model(augment(pixels(images[index]), generator).to(device), ids.to(device))
        logits = scale * image @ text[which.to(device)].T
        same = (which[:, None] == which[None]).float().to(device)
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    fit(
        "clip",
        model,
        loss_fn,
        recipe,
        steps=steps,
        state_dir=state_dir,
        seed=seed,
    )
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in model.cpu().state_dict().items()},
        output_dir / "open_clip_model.safetensors",
    )
    (output_dir / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}, indent=2) + "\n"
    )
    tokenizer.save_pretrained(output_dir)


# --- judge --------------------------------------------------------------------------------------------


def train_judge(
    images: torch.Tensor,
    labels: dict[str, torch.Tensor],
    judge: Judge,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    augment: Augment = as_they_are,
    recipe: Recipe = JUDGE,
    device: str = "cpu",
) -> Judge:
    """Train every head of `judge` by cross-entropy, of the domains in `judge.several` class by class.

    Args:
        labels: by domain, (N,) class indices, or (N, classes) float, 1 for what is shown, where there may be
            several.
    """
    judge.to(device)

    def loss_fn(_: int, generator: torch.Generator) -> torch.Tensor:
        index = _batch(len(images), 64, generator)
        logits = judge(augment(pixels(images[index]), generator).to(device))
        return sum(loss(domain, logits[domain], labels[domain][index].to(device)) for domain in logits)

    def loss(domain: str, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        if domain in judge.several:
            return F.binary_cross_entropy_with_logits(found, truth, reduction="sum") / len(found)
        return F.cross_entropy(found, truth, label_smoothing=0.05)

    fit("judge", judge, loss_fn, recipe, steps=steps, state_dir=state_dir, seed=seed)
    return judge.cpu()
