"""An image classifier of the canvas's styles or objects that is not its judge: `python -m
benchmarks.classifier --domain object --output_dir DIR`.

A small ResNet of transformers', trained on drawings of its own seed and saved as anyone would save one. It
shows the reward by a classifier:

    python -m reward.train --classifier_name_or_path DIR --num_images 2560 --output_dir REWARD
    python train_unlearn_lora.py --concept cat --reward_type classifier --classifier_name_or_path DIR
    --target_label cat \\
        --reward_model_name_or_path REWARD
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from benchmarks.worlds.canvas.build import STYLE_NAMES, drawings, labels
from benchmarks.worlds.canvas.draw import OBJECTS

DRAWINGS_SEED = 6
NAMES = {"style": STYLE_NAMES, "object": OBJECTS}


def train_classifier(
    images: torch.Tensor, truth: torch.Tensor, names: list[str], steps: int, batch_size: int, seed: int
) -> ResNetForImageClassification:
    """A classifier of uint8 images (N, 3, H, W) by labels (N,)."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48, 96],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = ResNetForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in tqdm(range(steps), desc="classifier"):
        index = torch.randint(len(images), (batch_size,))
        loss = F.cross_entropy(
            model(pixel_values=images[index].float() / 127.5 - 1).logits, truth[index], label_smoothing=0.05
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.classifier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--domain", choices=list(NAMES), default="object", help="What it tells apart.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="Where the classifier is written, as transformers writes it.",
    )
    parser.add_argument("--num_images", type=int, default=8192, help="Drawings to learn from.")
    parser.add_argument("--max_train_steps", type=int, default=600, help="Optimizer steps.")
    parser.add_argument("--train_batch_size", type=int, default=64, help="Drawings in an optimizer step.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and batches.")
    return parser.parse_args(input_args)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    count = args.num_images + args.num_images // 8
    images, truth = drawings(count, DRAWINGS_SEED), labels(count)[args.domain]
    with torch.enable_grad():
        model = train_classifier(
            images[: args.num_images],
            truth[: args.num_images],
            NAMES[args.domain],
            args.max_train_steps,
            args.train_batch_size,
            args.seed,
        )
    held_out = images[args.num_images :].float() / 127.5 - 1
    right = (
        torch.cat([model(pixel_values=x).logits.argmax(1) for x in held_out.split(256)])
        == truth[args.num_images :]
    )
    side = images.shape[-1]
    model.save_pretrained(args.output_dir)
    ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(args.output_dir)
    print(
        f"right on {100 * right.float().mean().item():.1f} % of {len(right)} drawings it had not seen; wrote {args.output_dir}"
    )


if __name__ == "__main__":
    main(parse_args())
