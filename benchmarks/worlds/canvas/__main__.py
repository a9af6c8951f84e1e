"""Rebuild everything the canvas ships, from seeds: `python -m benchmarks.worlds.canvas`.

Drawings -> autoencoder -> UNet with its text encoder (the pipeline); open_clip teacher; judge; reward
predictor. Every stage resumes where it was interrupted; the last one says how good the result is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import canvas
from benchmarks.worlds.canvas.build import build_judge, build_pipeline, build_reward, build_teacher, report

STAGES = {"pipeline": build_pipeline, "clip": build_teacher, "judge": build_judge, "reward": build_reward}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds.canvas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=canvas.WEIGHTS,
        help="Where the weights are written. Default: where the package looks for them.",
    )
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("runs/canvas"),
        help="Where drawings and the state of unfinished stages are kept.",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=[*STAGES, "report"],
        default=[*STAGES, "report"],
        help="Which parts to build.",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="Multiplies the number of training steps, for a quick trial."
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    for stage in args.stages:
        if stage != "report":
            STAGES[stage](args.work_dir, args.output_dir / stage, args.scale)
    if "report" in args.stages:
        for name, value in report(args.output_dir).items():
            print(f"{name:>24} {value:7.2f}")


if __name__ == "__main__":
    main(parse_args())
