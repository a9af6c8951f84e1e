"""A style LoRA that owes nothing to this project: `python -m benchmarks.style --style Blueprint --output_dir
DIR`.

A stand-in for a LoRA from elsewhere. The recipe of diffusers' `train_text_to_image_lora.py`: peft's LoRA on
the UNet's attention, AdamW, the denoising loss, on drawings of one style whose captions call it by a trigger
word. Only the learning rate is that of a small UNet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm.auto import tqdm

import canvas
from benchmarks.worlds.canvas.build import WORDINGS
from benchmarks.worlds.canvas.draw import OBJECTS, PROMPT, STYLES, draw
from benchmarks.worlds.canvas.models import encode
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline

DRAWINGS_SEED = 8
TRIGGER = "sks"
TRIGGER_WORDINGS = [
    PROMPT,
    *(wording for wording in WORDINGS if "{style}" in wording and "{object}" in wording),
]


def trigger_prompts(trigger: str = TRIGGER) -> list[tuple[str, str]]:
    """Each object in each wording that names it in the trigger's style: (prompt, object)."""
    return [
        (wording.format(object=name, style=trigger), name) for name in OBJECTS for wording in TRIGGER_WORDINGS
    ]


def train_style(
    pipe: StableDiffusionPipeline,
    style: str,
    num_images: int,
    steps: int,
    batch_size: int,
    rank: int,
    rate: float,
    seed: int,
) -> None:
    """Put a LoRA on the pipeline's UNet and teach it that the trigger word is a style."""
    torch.manual_seed(seed)
    captioned = trigger_prompts()
    of = [i % len(captioned) for i in range(num_images)]
    images = np.stack(
        [
            draw(style, captioned[row][1], np.random.default_rng([DRAWINGS_SEED, i]))
            for i, row in enumerate(of)
        ]
    )
    mean, std = encode(pipe.vae, torch.from_numpy(images).permute(0, 3, 1, 2))
    texts = Backbone.of(pipe).encode_prompts([prompt for prompt, _ in captioned]).states[of]
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    optimizer = torch.optim.AdamW(
        [p for p in pipe.unet.parameters() if p.requires_grad], lr=rate, weight_decay=1e-2
    )
    for _ in tqdm(range(steps), desc=f"a LoRA for {style}"):
        row = torch.randint(num_images, (batch_size,))
        latents = mean[row] + std[row] * torch.randn_like(std[row])
        noise = torch.randn_like(latents)
        t = torch.randint(pipe.scheduler.config.num_train_timesteps, (batch_size,))
        loss = F.mse_loss(pipe.unet(pipe.scheduler.add_noise(latents, noise, t), t, texts[row]).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.style",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--style",
        choices=list(STYLES),
        default="Blueprint",
        help=f'The style that the word "{TRIGGER}" is to stand for.',
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Where the adapter is written, as diffusers writes it."
    )
    parser.add_argument("--num_images", type=int, default=512, help="Drawings to learn from.")
    parser.add_argument("--max_train_steps", type=int, default=300, help="Optimizer steps.")
    parser.add_argument("--train_batch_size", type=int, default=32, help="Drawings in an optimizer step.")
    parser.add_argument("--rank", type=int, default=4, help="Rank of the LoRA.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Learning rate.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and batches.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    pipe = load_pipeline(canvas.PIPELINE)
    train_style(
        pipe,
        args.style,
        args.num_images,
        args.max_train_steps,
        args.train_batch_size,
        args.rank,
        args.learning_rate,
        args.seed,
    )
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(
        args.output_dir, unet_lora_layers=layers, safe_serialization=True
    )
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    main(parse_args())
