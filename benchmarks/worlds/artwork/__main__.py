"""Build a small text-to-image world from open-licensed emoji.

`python -m benchmarks.worlds.artwork data --packages DIR` turns drawings of npm packages into one file of
sprites with names, synonyms and categories, the pack. `python -m benchmarks.worlds.artwork build` makes of it
an autoencoder, a UNet with its text encoder (the pipeline), a judge, an open_clip teacher and a reward
predictor. Judge and teacher share nothing with the pipeline but the sprites: pictures, networks and seeds are
their own. Every stage resumes where it was interrupted; the last one says how good the result is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.worlds.artwork.build import (
    SIZES,
    Build,
    build_autoencoder,
    build_decoder,
    build_denoiser,
    build_judge,
    build_reward,
    build_teacher,
)
from benchmarks.worlds.artwork.pack import CREDITS, Artwork, load, make, save
from benchmarks.worlds.artwork.packages import NAMES, STYLES, credits
from benchmarks.worlds.artwork.report import report
from benchmarks.worlds.artwork.sheets import contact_sheet, scene_sheet
from common.errors import friendly_errors
from common.files import write_bytes, write_text
from common.flags import Command, flag, parse_command

PROG = "python -m benchmarks.worlds.artwork"
STAGES = {
    "autoencoder": build_autoencoder,
    "decoder": build_decoder,
    "denoiser": build_denoiser,
    "judge": build_judge,
    "clip": build_teacher,
    "reward": build_reward,
}
PARTS = (*STAGES, "report")


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    packages: Path = flag(help="Where `npm pack` has put the packages (see above).")
    pack: Path = flag(
        Path("runs/artwork/pack.zip"),
        help="The file that is written. Two sheets of pictures and CREDITS.md are written beside it.",
    )
    objects: int = flag(41, at_least=3, help="How many objects are chosen: 41 for CPUs, 256 for GPUs.")


def run_data(config: DataConfig) -> None:
    """Make the pack, say what is in it and draw two sheets to look at."""
    save(make(config.packages, config.objects), config.pack)
    artwork = load(config.pack)
    print(summary(artwork))
    folder, stem = config.pack.parent, config.pack.stem
    write_text(folder / CREDITS, credits(artwork.sources))
    for name, sheet in {"objects": contact_sheet(artwork), "scenes": scene_sheet(artwork)}.items():
        sheet.save(picture := io.BytesIO(), format="PNG")
        write_bytes(folder / f"{stem}_{name}.png", picture.getvalue())
    print(f"{config.pack}: {config.pack.stat().st_size / 1e6:.1f} MB")


@dataclass(frozen=True)
class BuildConfig:
    """Build."""

    pack: Path = flag(Path("runs/artwork/pack.zip"), help="What `data` has written.")
    output_dir: Path = flag(
        Path("runs/artwork"), help="Where weights, quality.json and unfinished work are written."
    )
    stages: tuple[str, ...] = flag(PARTS, choices=PARTS, help="Which parts to build. Default: all.")
    without: str | None = flag(
        None,
        metavar="NAME",
        help="Train only one more pipeline, on the same latents, that never sees this object or style: what exact "
        "forgetting looks like.",
    )
    begun: Path | None = flag(
        None,
        metavar="DIR",
        help="A pipeline of this world. Its autoencoder is kept, its UNet and text encoder are trained further.",
    )
    size: str | None = flag(
        None, choices=tuple(SIZES), help="How large and how long. Default: gpu where there is one."
    )
    scale: float = flag(1.0, above=0, help="Multiplies the number of training steps, for a quick trial.")


def run_build(config: BuildConfig) -> None:
    """Run the stages that were asked for."""
    artwork = load(config.pack)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[config.size or ("gpu" if device == "cuda" else "cpu")]
    build = Build(config.pack, config.output_dir, size, config.scale, device, config.begun)
    build.begin()
    text = credits(artwork.sources)
    write_text(config.output_dir / CREDITS, text)
    if config.without:
        build_denoiser(build, config.without)
        return
    for stage in config.stages:
        if stage == "report":
            print(json.dumps(report(build), indent=2))
        else:
            STAGES[stage](build)


def summary(artwork: Artwork) -> str:
    """Objects by subgroup with their synonyms, then categories with their members."""
    lines = [f"{len(artwork.styles)} styles: {', '.join(artwork.styles)}", f"{len(artwork.names)} objects"]
    for subgroup in dict.fromkeys(obj.subgroup for obj in artwork.objects):
        of_it = [obj for obj in artwork.objects if obj.subgroup == subgroup]
        named = [f"{obj.name} ({', '.join(obj.synonyms)})" if obj.synonyms else obj.name for obj in of_it]
        lines.append(f"  {subgroup}: {', '.join(named)}")
    lines.append(f"{len(artwork.categories)} categories")
    lines += [
        f"  {name} ({len(members)}): {', '.join(members)}" for name, members in artwork.categories.items()
    ]
    return "\n".join(lines)


COMMANDS = {
    "data": Command(
        DataConfig,
        run_data,
        help="Make the pack from npm packages.",
        description="Make the pack from npm packages, which these commands put into DIR:\n\n"
        + "\n".join(f"  {p.command(Path('DIR'))}" for p in (*(style.package for style in STYLES), NAMES)),
    ),
    "build": Command(
        BuildConfig,
        run_build,
        help="Train base, judge, teacher and reward predictor on the pack.",
        description="Train base, judge, teacher and reward predictor on the pack.",
    ),
}


def parse_config(arguments: Sequence[str] | None = None) -> Any:
    """The settings of a command line."""
    return parse_command(COMMANDS, arguments, __doc__, prog=PROG)


def main(config: Any) -> None:
    """Run the command that the settings belong to; a user's error ends in a sentence and exit code 2."""
    run = next(command.run for command in COMMANDS.values() if isinstance(config, command.config))
    with friendly_errors():
        run(config)


if __name__ == "__main__":
    main(parse_config())
