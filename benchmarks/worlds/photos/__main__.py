"""Train a small text-to-image pipeline on CIFAR-10 photographs: `python -m benchmarks.worlds.photos
--data_zip cifar10.zip`.

Photographs -> autoencoder -> UNet with its text encoder (the pipeline); judge; open_clip teacher; reward
predictor. Judge and teacher share nothing but the photographs: their networks, seeds and crops are their own.
Every
    stage
resumes where it was interrupted; the last one says how good the result is. Trial runs with another
`--scale` need another `--output_dir`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.worlds.photos.build import (
    SIZES,
    build_autoencoder,
    build_denoiser,
    build_judge,
    build_reward,
    build_teacher,
    report,
)
from benchmarks.worlds.photos.data import CLASSES, DataError, load_photos
from common.command_line import number

STAGES = {
    "autoencoder": build_autoencoder,
    "denoiser": build_denoiser,
    "judge": build_judge,
    "clip": build_teacher,
    "reward": build_reward,
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data_zip",
        type=Path,
        help="A zip with train/<class>/*.jpg and test/<class>/*.jpg. Default: the Hub, through `datasets`.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/photos"),
        help="Where weights, figures and unfinished work are written.",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=[*STAGES, "report"],
        default=[*STAGES, "report"],
        help="Which parts to build.",
    )
    parser.add_argument(
        "--without",
        choices=CLASSES,
        help="Train only one more pipeline, on the same latents, that is never shown this class: what exact forgetting looks like.",
    )
    parser.add_argument(
        "--size", choices=list(SIZES), help="How large and how long. Default: gpu where there is one."
    )
    parser.add_argument(
        "--scale",
        type=number,
        default=1.0,
        help="Multiplies the number of training steps, for a quick trial.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> int:
    """Run the stages that were asked for; 0, or 2 after a sentence about what the user must do."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[args.size or ("gpu" if device == "cuda" else "cpu")]
    steps = {stage: max(1, round(count * args.scale)) for stage, count in size.steps.items()}
    try:
        photos = load_photos(args.data_zip, args.output_dir / "work" / "photos.safetensors")
        if args.without:
            build_denoiser(photos["train"], args.output_dir, size, steps["denoiser"], device, args.without)
            return 0
        for stage in args.stages:
            if stage == "report":
                print(json.dumps(report(photos["test"], args.output_dir), indent=2))
            else:
                STAGES[stage](photos["train"], args.output_dir, size, steps[stage], device)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
