"""A style LoRA that owes nothing to this project: `python -m benchmarks.style --style Blueprint --output_dir
DIR`.

A stand-in for a LoRA from elsewhere. The recipe of diffusers' `train_text_to_image_lora.py`: peft's LoRA on
the UNet's attention, AdamW, the denoising loss, on drawings of one style whose captions call it by a trigger
word. Only the learning rate is that of a small UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from common.errors import friendly_errors
from common.flags import SEED, flag, parse
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


@dataclass(frozen=True)
class StyleConfig:
    """Style LoRA."""

    output_dir: Path = flag(help="Where the adapter is written, as diffusers writes it.")
    style: str = flag(
        "Blueprint", choices=tuple(STYLES), help=f'The style that the word "{TRIGGER}" is to stand for.'
    )
    num_images: int = flag(512, at_least=1, help="Drawings to learn from.")
    max_train_steps: int = flag(300, at_least=1, help="Optimizer steps.")
    train_batch_size: int = flag(32, at_least=1, help="Drawings in an optimizer step.")
    rank: int = flag(4, at_least=1, help="Rank of the LoRA.")
    learning_rate: float = flag(1e-3, above=0, help="Learning rate.")
    seed: int = flag(0, within=SEED, help="Seed of weights and batches.")


def train_style(pipe: StableDiffusionPipeline, config: StyleConfig) -> None:
    """Put a LoRA on the pipeline's UNet and teach it that the trigger word is a style."""
    torch.manual_seed(config.seed)
    captioned, count = trigger_prompts(), config.num_images
    of = [i % len(captioned) for i in range(count)]
    drawn = [
        draw(config.style, captioned[row][1], np.random.default_rng([DRAWINGS_SEED, i]))
        for i, row in enumerate(of)
    ]
    mean, std = encode(pipe.vae, torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))
    texts = Backbone.of(pipe).encode_prompts([prompt for prompt, _ in captioned]).states[of]
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    parameters = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-2)
    for _ in tqdm(range(config.max_train_steps), desc=f"a LoRA for {config.style}"):
        row = torch.randint(count, (config.train_batch_size,))
        latents = mean[row] + std[row] * torch.randn_like(std[row])
        noise = torch.randn_like(latents)
        t = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(row),))
        noisy = pipe.scheduler.add_noise(latents, noise, t)
        loss = F.mse_loss(pipe.unet(noisy, t, texts[row]).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def parse_config(arguments: Sequence[str] | None = None) -> StyleConfig:
    """The settings of a command line."""
    return parse(StyleConfig, arguments, __doc__, prog="python -m benchmarks.style")


def main(config: StyleConfig) -> None:
    pipe = load_pipeline(canvas.PIPELINE)
    train_style(pipe, config)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(
        config.output_dir, unet_lora_layers=layers, safe_serialization=True
    )
    print(f"wrote {config.output_dir}")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
