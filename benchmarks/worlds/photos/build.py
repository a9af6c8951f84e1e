"""The stages of the build: `python -m benchmarks.worlds.photos` runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from benchmarks.report import write_json
from benchmarks.worlds.canvas import models
from benchmarks.worlds.photos.data import CLASSES, SIDE, DataError, Photos
from benchmarks.worlds.photos.judge import train_judge
from common.files import write_bytes, write_text
from evaluation.judge import Judge, to_pixels

PROMPT = "a photo of a {object}"
WORDINGS = [
    "{object}",
    "a {object}",
    "the {object}",
    "a photo of the {object}",
    "a photo of one {object}",
    "a photograph of a {object}",
    "a picture of a {object}",
    "a picture of the {object}",
    "an image of a {object}",
    "an image of the {object}",
    "a small photo of a {object}",
    "a colour photo of a {object}",
]
PIPELINE_SEED, TEACHER_SEED, JUDGE_SEED = 11, 12, 13
JUDGE_WIDTHS = (64, 256, 256)
TEACHER_TOWER = {
    "timm_model_name": "resnet10t",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
}
DEFAULT_GUIDANCE, OTHER_GUIDANCE = 7.5, 4.0


@dataclass(frozen=True)
class Size:
    """How large the pipeline is and how long everything is trained.

    Attributes:
        steps: of each stage that is trained.
        latent_channels: of its latents, which are a quarter of the images' side.
        autoencoder_channels, unet_channels: of each resolution.
        unet_layers: residual blocks at each.
        reward_flags: further ones of `python -m reward.train`.
    """

    steps: Mapping[str, int]
    latent_channels: int
    autoencoder_channels: tuple[int, int, int]
    unet_channels: tuple[int, int]
    unet_layers: int
    reward_flags: tuple[str, ...] = ()


SIZES = {
    "cpu": Size(
        {"autoencoder": 5000, "denoiser": 10000, "judge": 3600, "clip": 5000, "reward": 4000},
        8,
        (24, 48, 48),
        (48, 96),
        1,
    ),
    "gpu": Size(
        {"autoencoder": 12000, "denoiser": 60000, "judge": 8000, "clip": 8000, "reward": 6000},
        8,
        (64, 128, 128),
        (96, 192),
        2,
    ),
}
"""For two cores and for a large card."""

Quality = dict[str, float | dict[str, float]]


def prompts() -> list[str]:
    return [PROMPT.format(object=name) for name in CLASSES]


def _usual(size: tuple[int, ...], generator: torch.Generator) -> list[bool]:
    return (torch.rand(size, generator=generator) < 0.75).tolist()


def pipeline_captions(labels: torch.Tensor) -> models.Captions:
    """The usual prompt three times in four, one of the other wordings otherwise; `labels` (N,) are the
    classes of the images."""

    def captions(index: torch.Tensor, generator: torch.Generator) -> list[str]:
        wording = torch.randint(len(WORDINGS), index.shape, generator=generator).tolist()
        usual = _usual(index.shape, generator)
        return [
            (PROMPT if u else WORDINGS[w]).format(object=CLASSES[label])
            for label, w, u in zip(labels[index].tolist(), wording, usual, strict=True)
        ]

    return captions


def teacher_captions(labels: torch.Tensor) -> models.Captions:
    """The same mixture, but one wording for a whole batch, so that only the class tells an image's caption
    from the others."""

    def captions(index: torch.Tensor, generator: torch.Generator) -> list[str]:
        wording = WORDINGS[int(torch.randint(len(WORDINGS), (), generator=generator))]
        wording = PROMPT if _usual((1,), generator)[0] else wording
        return [wording.format(object=CLASSES[label]) for label in labels[index].tolist()]

    return captions


def with_flips(photos: Photos) -> Photos:
    """(2N, ...): every photograph and, after all of them, every mirror image."""
    return Photos(torch.cat([photos.images, photos.images.flip(-1)]), photos.labels.repeat(2))


def crop_and_flip(x: torch.Tensor, generator: torch.Generator, pad: int) -> torch.Tensor:
    """(B, 3, S, S) -> the same shape: each image moved by up to `pad` pixels either way (the border
    mirrored), every other one flipped."""
    count, _, side, _ = x.shape
    offsets = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(side)
    flipped = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    padded = F.pad(x, [pad] * 4, mode="reflect").permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def soften(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, S, S) -> the same shape: one image in four reduced to 16 pixels and enlarged again.

    The autoencoder loses about as much detail; a classifier that knows only sharp photographs is lost on its
    images.
    """
    soft = F.interpolate(F.interpolate(x, (SIDE // 2, SIDE // 2), mode="area"), x.shape[-2:], mode="bilinear")
    return torch.where(torch.rand((len(x), 1, 1, 1), generator=generator) < 0.25, soft, x)


def cut_out(x: torch.Tensor, generator: torch.Generator, hole: int) -> torch.Tensor:
    """(B, 3, S, S) -> the same shape: in each image a square of `hole` pixels, an odd number, about any pixel
    of it is grey.

    From DeVries & Taylor (2017, https://arxiv.org/abs/1708.04552).
    """
    count, _, side, _ = x.shape
    centres = torch.randint(side, (2, count, 1), generator=generator)
    rows, columns = (torch.arange(side) - centres).abs() <= hole // 2
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def augment_for_judge(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 32, 32) -> the same shape: cropped by up to 2 pixels, flipped, one in four softened, and a
    square of 9 pixels cut out."""
    return cut_out(crop_and_flip(soften(x, generator), generator, 2), generator, 9)


def augment_for_teacher(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 32, 32) -> the same shape: cropped by up to 4 pixels, flipped, and one in four softened."""
    return crop_and_flip(soften(x, generator), generator, 4)


def fast_arithmetic(device: str = "cpu") -> torch.autocast:
    """bfloat16 autocast on a GPU, and where the processor has instructions for it (twice as fast for residual
    networks); else no change.

    Without the cache of cast weights, which is emptied only on leaving the context: around a training loop it
    would hold the first step's weights for ever.
    """
    capabilities = torch.cpu.get_capabilities()
    fast = device == "cuda" or bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=fast, cache_enabled=False)


def build_autoencoder(photos: Photos, output_dir: Path, size: Size, steps: int, device: str) -> None:
    """Train the autoencoder, keep it in work/autoencoder and the latents of all photographs and their
    mirror images in work/latents."""
    images = with_flips(photos).images.contiguous(
        memory_format=torch.channels_last
    )  # the faster layout for its convolutions
    work = output_dir / "work"
    vae = models.train_autoencoder(
        images,
        steps=steps,
        state_dir=work,
        seed=PIPELINE_SEED,
        channels=size.autoencoder_channels,
        latent_channels=size.latent_channels,
        device=device,
    )
    vae.save_pretrained(work / "autoencoder")
    mean, std = models.encode(vae, images)
    latents = {"mean": mean.contiguous(), "std": std.contiguous()}
    write_bytes(work / "latents.safetensors", save(latents))


def build_denoiser(
    photos: Photos, output_dir: Path, size: Size, steps: int, device: str, *, without: str | None = None
) -> None:
    """Train UNet and text encoder on the latents of `build_autoencoder` and write the pipeline.

    Args:
        without: a class that this pipeline is never shown; it is written beside the other.
    """
    work = output_dir / "work"
    if not (work / "latents.safetensors").exists():
        raise DataError(f"{work} holds no latents: run the stage autoencoder first.")
    latents, labels = load_file(work / "latents.safetensors", device), with_flips(photos).labels
    name = pipeline_name(without)
    shown = labels != CLASSES.index(without) if without else torch.ones_like(labels, dtype=torch.bool)
    tokenizer = models.build_tokenizer()
    unet, text_encoder = models.train_denoiser(
        (latents["mean"][shown], latents["std"][shown]),
        pipeline_captions(labels[shown]),
        tokenizer,
        steps=steps,
        state_dir=work / name,
        seed=PIPELINE_SEED,
        channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        snr_gamma=5,
        device=device,
    )
    vae = AutoencoderKL.from_pretrained(work / "autoencoder")
    models.save_pipeline(output_dir / name, vae, unet, text_encoder, tokenizer)


def pipeline_name(without: str | None = None) -> str:
    """The pipeline's folder."""
    return f"pipeline-without-{without}" if without else "pipeline"


def build_judge(photos: Photos, output_dir: Path, size: Size, steps: int, device: str) -> None:
    torch.manual_seed(JUDGE_SEED)
    judge = Judge({"object": CLASSES}, PROMPT, SIDE, JUDGE_WIDTHS, blocks="pooled", mirrored=True)
    with fast_arithmetic(device):
        train_judge(
            photos,
            judge,
            augment_for_judge,
            steps=steps,
            state_dir=output_dir / "work",
            seed=JUDGE_SEED,
            device=device,
        )
    judge.save_pretrained(output_dir / "judge")


def build_teacher(photos: Photos, output_dir: Path, size: Size, steps: int, device: str) -> None:
    with fast_arithmetic(device):
        models.train_clip(
            photos.images,
            teacher_captions(photos.labels),
            models.build_tokenizer(),
            output_dir / "clip",
            steps=steps,
            state_dir=output_dir / "work",
            seed=TEACHER_SEED,
            augment=augment_for_teacher,
            tower=TEACHER_TOWER,
            device=device,
        )


def build_reward(photos: Photos, output_dir: Path, size: Size, steps: int, device: str) -> None:
    """Distil the reward predictor from teacher and pipeline, as a user would."""
    write_text(output_dir / "prompts.txt", "\n".join(prompts()) + "\n")
    given = {
        "pretrained_model_name_or_path": output_dir / "pipeline",
        "clip_model": f"local-dir:{output_dir / 'clip'}",
        "prompts": output_dir / "prompts.txt",
        "output_dir": output_dir / "reward",
        "max_train_steps": steps,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "reward.train", *words, "--overwrite_output_dir", *size.reward_flags]
    subprocess.run(command, check=True)


# --- report -------------------------------------------------------------------------------------------


def per_class(predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Percentage of (N,) predictions that are right, for each class and on average over the classes."""
    right = {
        name: 100 * (predicted[truth == label] == label).float().mean().item()
        for label, name in enumerate(CLASSES)
    }
    return {name: round(value, 2) for name, value in right.items()} | {
        "mean": round(sum(right.values()) / len(right), 2)
    }


@torch.no_grad()
def zero_shot(clip_dir: Path, images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> (N,) the class whose prompt the teacher finds nearest, through open_clip's own
    loading and preprocessing."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_dir}")
    model.eval()
    texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{clip_dir}")(prompts()), normalize=True)
    nearest = []
    for chunk in tqdm(images.permute(0, 2, 3, 1).split(256), desc="zero-shot"):
        inputs = torch.stack([preprocess(Image.fromarray(image.numpy())) for image in chunk])
        nearest.append((model.encode_image(inputs, normalize=True) @ texts.T).argmax(-1))
    return torch.cat(nearest)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) uint8 -> the autoencoder's reconstructions, same shape, in [-1, 1]."""
    return torch.cat([vae(models.pixels(chunk)).sample.clamp(-1, 1) for chunk in images.split(256)])


def generate(pipeline: StableDiffusionPipeline, guidance: float, images_per_class: int) -> list[Image.Image]:
    """30 DDIM steps of every prompt, `images_per_class` times over; image i is of class i modulo their
    number."""
    images: list[Image.Image] = []
    for seed in tqdm(range(images_per_class), desc=f"images at guidance {guidance:g}"):
        generator = torch.Generator().manual_seed(seed)
        images += pipeline(
            prompts(), num_inference_steps=30, guidance_scale=guidance, generator=generator
        ).images
    return images


def contact_sheet(images: list[Image.Image], columns: int = 16, zoom: int = 2) -> Image.Image:
    """One row a class, the first `columns` images of it, uncurated."""
    sheet = Image.new("RGB", (SIDE * columns, SIDE * len(CLASSES)))
    for i, image in enumerate(images[: columns * len(CLASSES)]):
        sheet.paste(image, (SIDE * (i // len(CLASSES)), SIDE * (i % len(CLASSES))))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def report(test: Photos, output_dir: Path, images_per_class: int = 32) -> Quality:
    """Judge and teacher on the test set, the autoencoder on 1,000 of it, the pipeline by the judge;
    contact sheets, quality.json."""
    judge = Judge.from_pretrained(output_dir / "judge")
    pipeline = StableDiffusionPipeline.from_pretrained(output_dir / "pipeline")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    some = Photos(*(t[:: max(1, len(test.labels) // 1000)] for t in test))
    reconstructions = reconstruct(pipeline.vae, some.images)
    error = ((reconstructions - models.pixels(some.images)) / 2).square().mean()
    quality: Quality = {
        "judge_test": per_class(judge.predict(models.pixels(test.images))["object"], test.labels),
        "teacher_zero_shot_test": per_class(zero_shot(output_dir / "clip", test.images), test.labels),
        "reconstruction_psnr_db": round(-10 * error.log10().item(), 2),
        "judge_reconstructions": per_class(judge.predict(reconstructions)["object"], some.labels),
    }
    truth = torch.arange(len(CLASSES)).repeat(images_per_class)
    for guidance in (DEFAULT_GUIDANCE, OTHER_GUIDANCE):
        images = generate(pipeline, guidance, images_per_class)
        quality[f"pipeline_guidance_{guidance:g}"] = per_class(
            judge.predict(to_pixels(images))["object"], truth
        )
        contact_sheet(images).save(output_dir / f"contact_sheet_guidance_{guidance:g}.png")
    write_json(output_dir / "quality.json", quality)
    return quality
