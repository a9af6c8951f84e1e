"""Erase several concepts from the bundled canvas, several seeds each, with the shipped defaults: `python -m
benchmarks.canvas`.

Every run is the training script in a process of its own, writing to `OUTPUT_DIR/<concept>-<seed>`; runs that
have their results are not repeated, so the benchmark can be interrupted. At the end a table in Markdown and a
JSON file, made from the runs' results.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.jobs import Job, run_jobs
from benchmarks.worlds.canvas.draw import OBJECTS, STYLES, draw
from evaluation.metrics import HEADLINE, summarize

EXEMPLAR_SEED = 7
CONCEPTS = ["Van Gogh style", "Neon style", "Mosaic style", "cat", "boat", "flower"]


def slug(concept: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", concept.casefold())


def what_to_erase(concept: str, args: argparse.Namespace) -> list[str]:
    """The flags that say it: by its name, by a spec written by hand, or by drawings of it alone. "a + b"
    names two concepts."""
    if args.specs:
        return ["--reward_spec", str(args.specs / f"{slug(concept)}.yaml")]
    if args.num_drawings:
        return [
            "--concept_images",
            str(draw_exemplars(concept, args.num_drawings, args.output_dir / "drawings" / slug(concept))),
        ]
    return ["--concept", *concept.split(" + ")]


def draw_exemplars(concept: str, count: int, directory: Path) -> Path:
    """`count` drawings of a style on objects in turn, or of an object in styles in turn."""
    directory.mkdir(parents=True, exist_ok=True)
    style = concept.removesuffix(" style")
    for i in range(count):
        pair = (
            (style, OBJECTS[i % len(OBJECTS)])
            if style in STYLES
            else (list(STYLES)[i % len(STYLES)], concept)
        )
        Image.fromarray(draw(*pair, np.random.default_rng([EXEMPLAR_SEED, i]))).save(
            directory / f"{i:02d}.png"
        )
    return directory


def training(concept: str, seed: int, args: argparse.Namespace) -> Job:
    """Train and evaluate one adapter, in `OUTPUT_DIR/<concept>-<seed>`."""
    directory = args.output_dir / f"{slug(concept)}-{seed}"
    given = [
        *what_to_erase(concept, args),
        "--seed",
        str(seed),
        "--output_dir",
        str(directory),
        "--overwrite_output_dir",
        *args.extra,
    ]
    return Job(
        ["train_unlearn_lora.py", *given],
        directory / "results.json",
        args.output_dir / f"{directory.name}.log",
    )


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95 % interval over the training seeds, for base and adapter, and the cost."""
    images = {name: sum(r["adapter"]["images"][name] for r in runs) for name in HEADLINE}
    figures = {
        side: summarize([{name: r[side][name] for name in HEADLINE} for r in runs], images)
        for side in ("base", "adapter")
    }
    cost = {
        name: statistics.mean(r["training"][name] for r in runs)
        for name in ("iterations", "images", "seconds")
    }
    return figures | {"cost": cost, "stopped_by": [r["training"]["stopped_by"] for r in runs]}


def table(by_concept: dict[str, dict[str, Any]]) -> str:
    """The Markdown table of the README."""
    lines = [
        "| erased | UA | IRA (base) | CRA (base) | iterations | images | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for concept, s in by_concept.items():
        after = {
            name: "{:.1f} [{:.1f}, {:.1f}]".format(s["adapter"][name]["mean"], *s["adapter"][name]["ci95"])
            for name in HEADLINE
        }
        before = {name: f"{s['base'][name]['mean']:.1f}" for name in HEADLINE}
        cost = f"{s['cost']['iterations']:.1f} | {s['cost']['images']:.0f} | {s['cost']['seconds']:.0f} s"
        lines.append(
            f"| {concept} | {after['UA']} | {after['IRA']} ({before['IRA']}) | {after['CRA']} ({before['CRA']}) | {cost} |"
        )
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.canvas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=CONCEPTS,
        help='What to erase, each in runs of its own; "cat + boat" erases both in one adapter.',
    )
    parser.add_argument(
        "--specs",
        type=Path,
        metavar="DIR",
        help="Use the specs in this folder, named after the concepts, in place of the automatic ones.",
    )
    parser.add_argument(
        "--num_drawings",
        type=int,
        help="Show the concepts by so many drawings of them, without a word, instead of naming them.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Training seeds.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/benchmark"),
        help="Where runs, table and JSON are written.",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="Runs at a time, each with an equal share of the cores."
    )
    parser.add_argument("extra", nargs="*", help="Further arguments of the training script, after --.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runs = [(concept, seed) for seed in args.seeds for concept in args.concepts]
    done = run_jobs([training(*run, args) for run in runs], args.jobs)
    by_concept = {
        c: summary([r for (concept, _), r in zip(runs, done, strict=True) if concept == c])
        for c in args.concepts
    }
    (args.output_dir / "summary.json").write_text(
        json.dumps({"seeds": args.seeds, "concepts": by_concept}, indent=2) + "\n", encoding="utf-8"
    )
    text = table(by_concept)
    (args.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(parse_args())
