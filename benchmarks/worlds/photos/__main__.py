"""Train a small text-to-image pipeline on CIFAR-10 photographs: `python -m benchmarks.worlds.photos
--data_zip cifar10.zip`.

Photographs -> autoencoder -> UNet with its text encoder (the pipeline); judge; open_clip teacher; reward
predictor. Judge and teacher share nothing but the photographs: their networks, seeds and crops are their own.
Every stage resumes where it was interrupted; the last one says how good the result is. Trial runs with
another `--scale` need another `--output_dir`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
from common.errors import friendly_errors
from common.flags import flag, parse

STAGES = {
    "autoencoder": build_autoencoder,
    "denoiser": build_denoiser,
    "judge": build_judge,
    "clip": build_teacher,
    "reward": build_reward,
}
PARTS = (*STAGES, "report")


@dataclass(frozen=True)
class BuildConfig:
    """Build."""

    data_zip: Path | None = flag(
        None,
        help="A zip with train/<class>/*.jpg and test/<class>/*.jpg. Default: the Hub, through `datasets`.",
    )
    output_dir: Path = flag(
        Path("runs/photos"), help="Where weights, quality.json and unfinished work are written."
    )
    stages: tuple[str, ...] = flag(PARTS, choices=PARTS, help="Which parts to build. Default: all.")
    without: str | None = flag(
        None,
        choices=tuple(CLASSES),
        help="Train only one more pipeline, on the same latents, that is never shown this class: what exact "
        "forgetting looks like.",
    )
    size: str | None = flag(
        None, choices=tuple(SIZES), help="How large and how long. Default: gpu where there is one."
    )
    scale: float = flag(1.0, above=0, help="Multiplies the number of training steps, for a quick trial.")


def parse_config(arguments: Sequence[str] | None = None) -> BuildConfig:
    """The settings of a command line."""
    return parse(BuildConfig, arguments, __doc__, prog="python -m benchmarks.worlds.photos")


def main(config: BuildConfig) -> int:
    """Run the stages that were asked for; 0, or 2 after a sentence about what the user must do."""
    output_dir, device = config.output_dir, "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[config.size or ("gpu" if device == "cuda" else "cpu")]
    steps = {stage: max(1, round(count * config.scale)) for stage, count in size.steps.items()}
    try:
        photos = load_photos(config.data_zip, output_dir / "work" / "photos.safetensors")
        train = photos["train"]
        if config.without:
            build_denoiser(train, output_dir, size, steps["denoiser"], device, without=config.without)
            return 0
        for stage in config.stages:
            if stage == "report":
                print(json.dumps(report(photos["test"], output_dir), indent=2))
            else:
                STAGES[stage](train, output_dir, size, steps[stage], device)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main(parse_config()))
