"""The stages of the build: `python -m benchmarks.worlds.canvas` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from benchmarks.report import write_json
from benchmarks.worlds.canvas import models
from benchmarks.worlds.canvas.draw import OBJECTS, PROMPT, STYLES, draw
from benchmarks.worlds.drawing import draw_in_parallel, shares
from common.files import make_directory, write_bytes
from evaluation.judge import Judge, to_pixels
from pipelines.base import load_pipeline
from reward.distil import train_predictor
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

STYLE_NAMES = list(STYLES)
COMBINATIONS = [(style, obj) for style in STYLE_NAMES for obj in OBJECTS]
WORDINGS = [
    "an image in {style} style",
    "{style} style",
    "{style}",
    "a {object} image",
    "a {object}",
    "{object}",
    "a {object} in {style} style",
    "{object}, {style} style",
    "a {style} style picture of a {object}",
]
NUM_DRAWINGS = 24576
"""That a pipeline learns from."""
PIPELINE_SEED, TEACHER_SEED, JUDGE_SEED, FRESH_SEED, REWARD_SEED = 1, 2, 3, 4, 5


def _draw_many(job: tuple[int, int, int]) -> np.ndarray:
    seed, start, count = job
    return np.stack(
        [
            draw(*COMBINATIONS[i % len(COMBINATIONS)], np.random.default_rng([seed, i]))
            for i in range(start, start + count)
        ]
    )


def drawings(count: int, seed: int, cache: Path | None = None) -> torch.Tensor:
    """`count` drawings (count, 3, 32, 32) uint8; drawing i is of combination i modulo their number."""
    if cache and cache.exists():
        return load_file(cache)["images"]
    jobs = [(seed, *share) for share in shares(count, 256)]
    images = draw_in_parallel(_draw_many, jobs, f"drawings (seed {seed})")
    if cache:
        make_directory(cache.parent)
        write_bytes(cache, save({"images": images}))
    return images


def labels(count: int) -> dict[str, torch.Tensor]:
    combination = torch.arange(count) % len(COMBINATIONS)
    return {"style": combination // len(OBJECTS), "object": combination % len(OBJECTS)}


def captions(index: torch.Tensor, generator: torch.Generator) -> list[str]:
    """The usual prompt seven times in ten, one of the other wordings otherwise."""
    wording = torch.randint(len(WORDINGS), index.shape, generator=generator).tolist()
    usual = (torch.rand(index.shape, generator=generator) < 0.7).tolist()
    pairs = [COMBINATIONS[i % len(COMBINATIONS)] for i in index.tolist()]
    return [
        (PROMPT if u else WORDINGS[w]).format(style=s, object=o)
        for (s, o), w, u in zip(pairs, wording, usual, strict=True)
    ]


def prompts() -> list[str]:
    return [PROMPT.format(style=style, object=obj) for style, obj in COMBINATIONS]


def build_pipeline(work: Path, output_dir: Path, scale: float) -> None:
    images = drawings(NUM_DRAWINGS, PIPELINE_SEED, work / "pipeline_drawings.safetensors")
    vae = models.train_autoencoder(images, steps=int(2000 * scale), state_dir=work, seed=PIPELINE_SEED)
    tokenizer = models.build_tokenizer()
    latents = models.encode(vae, images)
    unet, text_encoder = models.train_denoiser(
        latents, captions, tokenizer, steps=int(6000 * scale), state_dir=work, seed=PIPELINE_SEED
    )
    models.save_pipeline(output_dir, vae, unet, text_encoder, tokenizer)


def build_teacher(work: Path, output_dir: Path, scale: float) -> None:
    images = drawings(12288, TEACHER_SEED, work / "teacher_drawings.safetensors")
    models.train_clip(
        images,
        captions,
        models.build_tokenizer(),
        output_dir,
        steps=int(1000 * scale),
        state_dir=work,
        seed=TEACHER_SEED,
    )


def build_judge(work: Path, output_dir: Path, scale: float) -> None:
    images = drawings(12288, JUDGE_SEED, work / "judge_drawings.safetensors")
    torch.manual_seed(JUDGE_SEED)
    judge = Judge({"style": STYLE_NAMES, "object": OBJECTS}, PROMPT, images.shape[-1])
    models.train_judge(
        images, labels(len(images)), judge, steps=int(1200 * scale), state_dir=work, seed=JUDGE_SEED
    )
    judge.save_pretrained(output_dir)


def build_reward(work: Path, output_dir: Path, scale: float) -> None:
    weights = output_dir.parent
    teacher = Teacher.from_pretrained(f"local-dir:{weights / 'clip'}")
    predictor = distilled(load_pipeline(weights / "pipeline"), teacher, scale)
    predictor.save_pretrained(output_dir, dtype=torch.float16)


def distilled(
    pipe: DiffusionPipeline, teacher: Teacher, scale: float, guidance_scale: float = 7.5
) -> RewardPredictor:
    """The reward predictor of a pipeline that draws the canvas."""
    return train_predictor(
        pipe,
        teacher,
        prompts(),
        num_images=2560,
        guidance_scale=guidance_scale,
        steps=int(4000 * scale),
        seed=REWARD_SEED,
    )


@torch.no_grad()
def report(weights: Path, images_per_prompt: int = 8) -> dict[str, float]:
    """Judge on fresh drawings; pipeline (30 DDIM steps, its default guidance) by the judge; a contact
    sheet."""
    judge = Judge.from_pretrained(weights / "judge")
    fresh = drawings(2048, FRESH_SEED)
    quality = {f"judge_{d}": share for d, share in right(judge, models.pixels(fresh)).items()}
    pipe = StableDiffusionPipeline.from_pretrained(weights / "pipeline")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    some = models.pixels(fresh[:512])
    error = ((pipe.vae(some).sample.clamp(-1, 1) - some) / 2).square().mean()
    quality["reconstruction_psnr_db"] = -10 * error.log10().item()
    drawn, sheet = judged(pipe, judge, images_per_prompt, num_inference_steps=30)
    sheet.save(weights / "contact_sheet.png")
    quality |= drawn
    write_json(weights / "quality.json", {name: round(value, 2) for name, value in quality.items()})
    return quality


def judged(
    pipe: DiffusionPipeline, judge: Judge, images_per_prompt: int, **settings: Any
) -> tuple[dict[str, float], Image.Image]:
    """What `right` says of a pipeline that draws every combination, by "pipeline_<domain>", and a sheet of
    the first image of each, enlarged.

    Args:
        settings: of the pipeline's call.
    """
    images: list[Image.Image] = []
    for i in tqdm(range(images_per_prompt), desc="judging the pipeline"):
        images += pipe(prompts(), generator=torch.Generator().manual_seed(i), **settings).images
    side = images[0].width
    sheet = Image.new("RGB", (side * len(OBJECTS), side * len(STYLES)))
    for i in range(len(COMBINATIONS)):
        sheet.paste(images[i], (side * (i % len(OBJECTS)), side * (i // len(OBJECTS))))
    found = {f"pipeline_{d}": share for d, share in right(judge, to_pixels(images)).items()}
    return found, sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST)


def right(judge: Judge, pixels: torch.Tensor) -> dict[str, float]:
    """Percent of images (N, 3, H, W), of the combinations in turn, that a judge takes for what they are, by
    domain."""
    verdict, truth = judge.predict(pixels), labels(len(pixels))
    return {d: 100 * (verdict[d] == truth[d]).float().mean().item() for d in verdict}
