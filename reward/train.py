"""Distil the noise-conditioned reward predictor: `python -m reward.train`.

The base model draws images for a list of prompts, the open_clip teacher embeds them, and the predictor
learns to say from a noised latent and its timestep what the teacher would say of the image. With a squared
error that is the expected embedding given the noisy state, so its margins are unbiased at every noise level.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tqdm.auto import tqdm

import canvas
from environment.base import check_window, decode, load_pipeline, sample_size
from environment.errors import friendly_errors
from reward.predictor import RewardPredictor
from reward.spec import read_prompts
from reward.teacher import Teacher


@torch.no_grad()
def base_samples(
    pipe: StableDiffusionPipeline, prompts: list[str], count: int, num_inference_steps: int, guidance_scale: float, batch_size: int, seed: int
) -> torch.Tensor:
    """Latents (count, C, h, w) that the base draws for the prompts in turn, half of them by stochastic sampling."""
    # DDIMScheduler would clip x_0 to [-1, 1] wherever the base's own scheduler (Euler, DPM-Solver) has no word on it.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=pipe.scheduler.config.get("clip_sample", False))
    latents = []
    for i, start in enumerate(tqdm(range(0, count, batch_size), desc="base samples")):
        batch = [prompts[j % len(prompts)] for j in range(start, min(start + batch_size, count))]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        out = pipe(
            batch, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, eta=float(i % 2), generator=generator, output_type="latent"
        )
        latents.append(out.images.float())
    return torch.cat(latents)


def distil(
    predictor: RewardPredictor,
    latents: torch.Tensor,
    embeddings: torch.Tensor,
    scheduler: DDIMScheduler,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    generator: torch.Generator,
) -> None:
    """Minimise |f(x_t, t) - e|^2 over noised latents; the predictor ends up with its averaged weights.

    `latents` (N, C, h, w) and `embeddings` (N, D). One sample in ten is left clean.
    """
    parameters = list(predictor.parameters())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    average = [p.detach().clone() for p in parameters]
    predictor.train()
    bar = tqdm(range(steps), desc="reward predictor", mininterval=1)
    for step in bar:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        clean = torch.rand(batch_size, generator=generator) < 0.1
        noise = torch.randn((batch_size, *latents.shape[1:]), generator=generator).to(latents.device)
        x0, t, clean = latents[index], t.masked_fill(clean, 0).to(latents.device), clean.to(latents.device)
        noisy = torch.where(clean[:, None, None, None], x0, scheduler.add_noise(x0, noise, t))
        loss = F.mse_loss(predictor(noisy.to(device), t.to(device)), embeddings[index].to(device), reduction="none").sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(ema_decay, (step + 1) / (step + 10)))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    predictor.eval()


@torch.no_grad()
def cosine_by_noise(
    predictor: RewardPredictor, latents: torch.Tensor, embeddings: torch.Tensor, scheduler: DDIMScheduler, generator: torch.Generator
) -> dict[int, float]:
    """Mean cosine to the teacher's embedding on held-out latents at five noise levels."""
    last = scheduler.config.num_train_timesteps - 1
    result = {}
    for t in (0, last // 4, last // 2, 3 * last // 4, last):
        steps = torch.full((len(latents),), t)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = latents if t == 0 else scheduler.add_noise(latents, noise, steps)
        result[t] = F.cosine_similarity(predictor(noisy, steps), embeddings).mean().item()
    return result


def train_predictor(
    pipe: StableDiffusionPipeline,
    teacher: Teacher,
    prompts: list[str],
    *,
    num_images: int = 4096,
    num_inference_steps: int = 16,
    guidance_scale: float = 7.5,
    batch_size: int = 64,
    steps: int = 4000,
    train_batch_size: int = 128,
    learning_rate: float = 2e-3,
    ema_decay: float = 0.999,
    width: int = 48,
    seed: int = 0,
    clip_model: str | None = None,
) -> RewardPredictor:
    """Draw, embed, distil; says at the end how well the predictor does on latents it was not trained on."""
    for prompt in prompts:
        check_window(pipe.tokenizer, prompt)
    latents = base_samples(pipe, prompts, num_images, num_inference_steps, guidance_scale, batch_size, seed)
    chunks = tqdm(latents.split(batch_size), desc="teacher embeddings")
    embeddings = torch.cat([teacher.encode_images(decode(pipe.vae, chunk.to(pipe.vae.device))) for chunk in chunks])
    latents, embeddings = latents.cpu(), embeddings.cpu()
    held_out = max(1, num_images // 10)
    torch.manual_seed(seed)
    # A local directory means nothing on another machine: only names that anyone can load are recorded.
    name = None if clip_model is None or clip_model.startswith("local-dir:") else clip_model
    predictor = RewardPredictor(latents.shape[1], sample_size(pipe), embeddings.shape[1], width=width, clip_model=name, prompts=prompts)
    predictor.to(pipe.device)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    distil(
        predictor,
        latents[held_out:],
        embeddings[held_out:],
        scheduler,
        steps=steps,
        batch_size=train_batch_size,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        generator=generator,
    )
    cosines = cosine_by_noise(predictor.cpu(), latents[:held_out], embeddings[:held_out], scheduler, generator)
    print("cosine to the teacher on held-out latents: " + ", ".join(f"t={t}: {c:.3f}" for t, c in cosines.items()))
    return predictor


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reward.train", description="Train the noise-conditioned reward predictor for a base model.")
    parser.add_argument(
        "--pretrained_model_name_or_path", default=str(canvas.PIPELINE), help="Base pipeline: diffusers directory or Hub id. Default: bundled."
    )
    parser.add_argument("--revision", help="Revision of the base pipeline on the Hub.")
    parser.add_argument("--variant", help="Variant of the base pipeline's weight files, for example fp16.")
    parser.add_argument(
        "--clip_model", default=f"local-dir:{canvas.CLIP}", help="Teacher: open_clip name, hf-hub:ID or local-dir:DIR. Default: bundled."
    )
    parser.add_argument("--clip_pretrained", help="open_clip's pretrained tag or a safetensors file, for an architecture name.")
    parser.add_argument("--prompts", required=True, help="Text file of prompts the base draws, one a line; # starts a comment.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Where config.json and model.safetensors are written.")
    parser.add_argument("--num_images", type=int, default=4096, help="How many images the base draws to learn from.")
    parser.add_argument("--num_inference_steps", type=int, default=16, help="Denoising steps of these images.")
    parser.add_argument("--guidance_scale", type=float, default=7.5, help="Guidance of these images; use that of the later rollouts.")
    parser.add_argument("--sample_batch_size", type=int, default=64, help="Images drawn at a time.")
    parser.add_argument("--max_train_steps", type=int, default=4000, help="Optimizer steps.")
    parser.add_argument("--train_batch_size", type=int, default=128, help="Noised latents in an optimizer step.")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="Peak of the one-cycle learning rate.")
    parser.add_argument("--width", type=int, default=48, help="Channels of the predictor's first stage, a multiple of 8.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of images, noise and weights.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    accelerator = Accelerator()
    set_seed(args.seed)
    prompts = read_prompts(args.prompts)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.revision, args.variant).to(accelerator.device)
    teacher = Teacher.from_pretrained(args.clip_model, args.clip_pretrained, accelerator.device)
    predictor = train_predictor(
        pipe,
        teacher,
        prompts,
        num_images=args.num_images,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        batch_size=args.sample_batch_size,
        steps=args.max_train_steps,
        train_batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        width=args.width,
        seed=args.seed,
        clip_model=args.clip_model,
    )
    if accelerator.is_main_process:
        predictor.save_pretrained(args.output_dir, dtype=torch.float16)
        print(f"Wrote {args.output_dir}; use it with --reward_model_name_or_path {args.output_dir}")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
