"""An image classifier of the canvas's styles or objects that is not its judge: `python -m
benchmarks.classifier --domain object --output_dir DIR`.

A small ResNet of transformers', trained on drawings of its own seed and saved as anyone would save one. It
shows the reward by a classifier:

    python -m reward.train --classifier_name_or_path DIR --num_images 2560 --output_dir REWARD
    python train_unlearn_lora.py --concept cat --reward_type classifier --classifier_name_or_path DIR \\
        --target_label cat --reward_model_name_or_path REWARD
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from benchmarks.worlds.canvas.build import STYLE_NAMES, drawings, labels
from benchmarks.worlds.canvas.draw import OBJECTS
from common.errors import friendly_errors
from common.flags import SEED, flag, parse

DRAWINGS_SEED = 6
NAMES = {"style": STYLE_NAMES, "object": OBJECTS}


@dataclass(frozen=True)
class ClassifierConfig:
    """Classifier."""

    output_dir: Path = flag(help="Where the classifier is written, as transformers writes it.")
    domain: str = flag("object", choices=tuple(NAMES), help="What it tells apart.")
    num_images: int = flag(8192, at_least=8, help="Drawings to learn from.")
    max_train_steps: int = flag(600, at_least=1, help="Optimizer steps.")
    train_batch_size: int = flag(64, at_least=1, help="Drawings in an optimizer step.")
    seed: int = flag(0, within=SEED, help="Seed of weights and batches.")


def train_classifier(
    images: torch.Tensor, truth: torch.Tensor, config: ClassifierConfig
) -> ResNetForImageClassification:
    """A classifier of uint8 images (N, 3, H, W) by labels (N,)."""
    torch.manual_seed(config.seed)
    names = NAMES[config.domain]
    layers = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = ResNetForImageClassification(layers).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = config.max_train_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in tqdm(range(steps), desc="classifier"):
        index = torch.randint(len(images), (config.train_batch_size,))
        logits = model(pixel_values=images[index].float() / 127.5 - 1).logits
        loss = F.cross_entropy(logits, truth[index], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def parse_config(arguments: Sequence[str] | None = None) -> ClassifierConfig:
    """The settings of a command line."""
    return parse(ClassifierConfig, arguments, __doc__, prog="python -m benchmarks.classifier")


def main(config: ClassifierConfig) -> None:
    learnt, count = config.num_images, config.num_images + config.num_images // 8
    images, truth = drawings(count, DRAWINGS_SEED), labels(count)[config.domain]
    model = train_classifier(images[:learnt], truth[:learnt], config)
    held_out = images[learnt:].float() / 127.5 - 1
    with torch.no_grad():
        predicted = torch.cat([model(pixel_values=x).logits.argmax(1) for x in held_out.split(256)])
    right = predicted == truth[learnt:]
    side = images.shape[-1]
    model.save_pretrained(config.output_dir)
    ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(config.output_dir)
    share = 100 * right.float().mean().item()
    print(f"right on {share:.1f} % of {len(right)} drawings it had not seen; wrote {config.output_dir}")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
