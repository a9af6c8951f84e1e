"""Erase several concepts from the bundled canvas, several seeds each, with the shipped defaults: `python -m
benchmarks.canvas`. Arguments after `--` go to the training script.

Every run is the training script in a process of its own, writing to `OUTPUT_DIR/<concept>-<seed>`; runs that
have their results are not repeated, so the benchmark can be interrupted. At the end a table in Markdown and a
JSON file, made from the runs' results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.jobs import Job, run_jobs, slug, split_arguments
from benchmarks.report import markdown, mean, mean_interval, number, write_json, write_text
from benchmarks.worlds.canvas.draw import OBJECTS, STYLES, draw
from common.errors import friendly_errors
from common.flags import SEED, flag, parse
from evaluation.metrics import HEADLINE, summarize

EXEMPLAR_SEED = 7
SCRIPT = ("train_unlearn_lora.py",)
"""What Python is given to train."""
CONCEPTS = ("Van Gogh style", "Neon style", "Mosaic style", "cat", "boat", "flower")


@dataclass(frozen=True)
class CanvasConfig:
    """Runs."""

    concepts: tuple[str, ...] = flag(
        CONCEPTS, help='What to erase, each in runs of its own; "cat + boat" erases both in one adapter.'
    )
    specs: Path | None = flag(
        None,
        metavar="DIR",
        help="Use the specs in this folder, named after the concepts, in place of the automatic ones.",
    )
    num_drawings: int | None = flag(
        None,
        at_least=1,
        help="Show the concepts by N drawings of them, without a word, instead of naming them.",
    )
    seeds: tuple[int, ...] = flag((0, 1, 2), within=SEED, help="Training seeds.")
    output_dir: Path = flag(Path("runs/benchmark"), help="Where runs, table and JSON are written.")
    jobs: int = flag(2, at_least=1, help="Runs at a time, each with an equal share of the cores.")


def what_to_erase(concept: str, config: CanvasConfig) -> list[str]:
    """The flags that say it: by its name, by a spec written by hand, or by drawings of it alone. "a + b"
    names two concepts."""
    if config.specs:
        return ["--reward_spec", str(config.specs / f"{slug(concept)}.yaml")]
    if config.num_drawings:
        folder = config.output_dir / "drawings" / slug(concept)
        return ["--concept_images", str(draw_exemplars(concept, config.num_drawings, folder))]
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
        drawn = draw(*pair, np.random.default_rng([EXEMPLAR_SEED, i]))
        Image.fromarray(drawn).save(directory / f"{i:02d}.png")
    return directory


def training(
    concept: str,
    seed: int,
    config: CanvasConfig,
    extra: Sequence[str] = (),
    script: Sequence[str] = SCRIPT,
) -> Job:
    """Train and evaluate one adapter, in `OUTPUT_DIR/<concept>-<seed>`.

    Args:
        extra: further arguments of the training script.
        script: what Python is given before all of them.
    """
    directory = config.output_dir / f"{slug(concept)}-{seed}"
    run = ["--seed", str(seed), "--output_dir", str(directory), "--overwrite_output_dir"]
    return Job(
        [*script, *what_to_erase(concept, config), *run, *extra],
        directory / "results.json",
        config.output_dir / f"{directory.name}.log",
    )


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and 95 % interval over the training seeds, for base and adapter, and the cost."""
    images = {name: sum(r["adapter"]["images"][name] for r in runs) for name in HEADLINE}
    sides = {
        side: summarize([{name: r[side][name] for name in HEADLINE} for r in runs], images)
        for side in ("base", "adapter")
    }
    cost = {name: mean(r["training"][name] for r in runs) for name in ("iterations", "images", "seconds")}
    return sides | {"cost": cost, "stopped_by": [r["training"]["stopped_by"] for r in runs]}


def table(by_concept: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of the README."""
    rows = []
    for concept, found in by_concept.items():
        after = {name: mean_interval(found["adapter"][name]) for name in HEADLINE}
        before = {name: number(found["base"][name]["mean"]) for name in HEADLINE}
        kept = [f"{after[name]} ({before[name]})" for name in ("IRA", "CRA")]
        cost = found["cost"]
        spent = [number(cost["iterations"]), number(cost["images"], 0), f"{number(cost['seconds'], 0)} s"]
        rows.append([concept, after["UA"], *kept, *spent])
    return markdown(["erased", "UA", "IRA (base)", "CRA (base)", "iterations", "images", "training"], rows)


def parse_config(arguments: Sequence[str] | None = None) -> CanvasConfig:
    """The settings of a command line."""
    return parse(CanvasConfig, arguments, __doc__, prog="python -m benchmarks.canvas")


def main(config: CanvasConfig, extra: Sequence[str] = (), script: Sequence[str] = SCRIPT) -> None:
    runs = [(concept, seed) for seed in config.seeds for concept in config.concepts]
    done = run_jobs([training(*run, config, extra, script) for run in runs], config.jobs)
    by_concept = {
        c: summary([r for (concept, _), r in zip(runs, done, strict=True) if concept == c])
        for c in config.concepts
    }
    write_json(config.output_dir / "summary.json", {"seeds": config.seeds, "concepts": by_concept})
    write_text(config.output_dir / "table.md", table(by_concept))
    print(table(by_concept))


if __name__ == "__main__":
    with friendly_errors():
        own, extra = split_arguments()
        main(parse_config(own), extra)
