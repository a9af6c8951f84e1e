"""Rebuild everything the canvas ships, from seeds: `python -m benchmarks.worlds.canvas`.

Drawings -> autoencoder -> UNet with its text encoder (the pipeline); open_clip teacher; judge; reward
predictor. Every stage resumes where it was interrupted; the last one says how good the result is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import canvas
from benchmarks.worlds.canvas.build import build_judge, build_pipeline, build_reward, build_teacher, report
from common.errors import friendly_errors
from common.flags import flag, parse

STAGES = {"pipeline": build_pipeline, "clip": build_teacher, "judge": build_judge, "reward": build_reward}
PARTS = (*STAGES, "report")


@dataclass(frozen=True)
class BuildConfig:
    """Build."""

    output_dir: Path = flag(
        canvas.WEIGHTS, help="Where the weights are written. Default: where the package looks for them."
    )
    work_dir: Path = flag(
        Path("runs/canvas"), help="Where drawings and the state of unfinished stages are kept."
    )
    stages: tuple[str, ...] = flag(PARTS, choices=PARTS, help="Which parts to build. Default: all.")
    scale: float = flag(1.0, above=0, help="Multiplies the number of training steps, for a quick trial.")


def parse_config(arguments: Sequence[str] | None = None) -> BuildConfig:
    """The settings of a command line."""
    return parse(BuildConfig, arguments, __doc__, prog="python -m benchmarks.worlds.canvas")


def main(config: BuildConfig) -> None:
    for stage in config.stages:
        if stage != "report":
            STAGES[stage](config.work_dir, config.output_dir / stage, config.scale)
    if "report" in config.stages:
        for name, value in report(config.output_dir).items():
            print(f"{name:>24} {value:7.2f}")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
