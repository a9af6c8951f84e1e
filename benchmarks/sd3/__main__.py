"""Erase a style and an object from the small Stable Diffusion 3, with the shipped defaults: `python -m
benchmarks.sd3`. Arguments after `--` go to the training script.

`python -m benchmarks.worlds.sd3` builds what is erased from. Runs that have their results are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import canvas
from benchmarks.canvas import CanvasConfig
from benchmarks.canvas import main as erase
from benchmarks.jobs import split_arguments
from benchmarks.worlds.sd3 import GUIDANCE
from common.errors import friendly_errors
from common.flags import SEED, flag, parse

TRAIN = ("-m", "benchmarks.sd3.train")


@dataclass(frozen=True)
class ErasuresConfig:
    """Runs."""

    world: Path = flag(Path("runs/sd3"), metavar="DIR", help="Holds `pipeline` and `reward`.")
    concepts: tuple[str, ...] = flag(
        ("Van Gogh style", "cat"), help="What to erase, each in runs of its own."
    )
    seeds: tuple[int, ...] = flag((0,), within=SEED, help="Training seeds.")
    output_dir: Path = flag(Path("runs/sd3/erased"), help="Where runs, table and JSON are written.")
    jobs: int = flag(1, at_least=1, help="Runs at a time, each with an equal share of the cores.")


def base_flags(world: Path) -> list[str]:
    """What the training script is told of the base, its reward and its judge."""
    given = {
        "pretrained_model_name_or_path": world / "pipeline",
        "reward_model_name_or_path": world / "reward",
        "clip_model": f"local-dir:{canvas.CLIP}",
        "judge_name_or_path": canvas.JUDGE,
        "guidance_scale": GUIDANCE,
        "validation_guidance_scale": GUIDANCE,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def parse_config(arguments: Sequence[str] | None = None) -> ErasuresConfig:
    """The settings of a command line."""
    return parse(ErasuresConfig, arguments, __doc__, prog="python -m benchmarks.sd3")


def main(config: ErasuresConfig, extra: Sequence[str] = ()) -> None:
    runs = CanvasConfig(
        concepts=config.concepts, seeds=config.seeds, output_dir=config.output_dir, jobs=config.jobs
    )
    erase(runs, [*base_flags(config.world), *extra], TRAIN)


if __name__ == "__main__":
    with friendly_errors():
        own, extra = split_arguments()
        main(parse_config(own), extra)
