"""Forget each class of CIFAR-10, by our default and by published methods: `python -m benchmarks.photos --base
runs/photos`.

The base is what `python -m benchmarks.worlds.photos` has written. Every method erases every class with every
seed, with the settings it has on the canvas, and the base's judge decides. For one training seed the
class-wise protocol of the literature is measured too (`benchmarks/photos/forgetting.py`), and where a
pipeline lies beside the base that never saw the class (`build --without`), on that as well. What has its
results is not run again. Written are table.md, comparison.json, comparison.png, a picture a class of what all
methods draw for the same prompts and seed, and a picture a method of every class before and after. The
erasures of the classes of `--probe` are probed too,
with photographs of the test set wherever images of the class are learnt from.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.compare.grid import FORGET, RETAIN, draw_rows, method_grid, picture
from benchmarks.compare.methods import BASE, NAMES
from benchmarks.compare.probes import probe_all, sections
from benchmarks.compare.report import plot, table
from benchmarks.compare.runs import Erasure, World, run_all
from benchmarks.jobs import Job, run_jobs
from benchmarks.photos.forgetting import NUM_IMAGES
from benchmarks.photos.report import WITHOUT, by_class, forgetting_table
from benchmarks.worlds.photos.build import PROMPT, pipeline_name
from benchmarks.worlds.photos.data import CLASSES, load_photos
from common.command_line import positive_int
from common.errors import friendly_errors
from common.files import write_aside
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from pipelines.base import load_pipeline

PARTS = ("pipeline", "clip", "reward", "judge")
EVALUATION_SEEDS = 20
"""Images of every class in the evaluation of a run."""
PICTURED = 6
"""Images of a class before, and after, in the picture of all classes."""
PROBE_PHOTOGRAPHS = 50
"""Of a class, for the probes to learn from."""


def save_photographs(base: Path, names: Sequence[str], directory: Path) -> None:
    """Write the first photographs of the test set of each class as PNG, into a folder a class."""
    test = load_photos(None, base / "work" / "photos.safetensors")["test"]
    for name in names:
        (directory / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(test.images[test.labels == CLASSES.index(name)][:PROBE_PHOTOGRAPHS]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(directory / name / f"{i:02}.png")


def world(base: Path, photographs: Path) -> World:
    """The flags that name the base and what belongs to it.

    Args:
        photographs: holds, or will, a folder of photographs for each class that is probed.

    Raises:
        ValueError: a part of it is missing.
    """
    missing = [part for part in PARTS if not (base / part).is_dir()]
    if missing:
        raise ValueError(
            f"{base} holds no {' and no '.join(missing)}: run `python -m benchmarks.worlds.photos --output_dir {base}` first."
        )
    pipeline, clip, reward, judge = (str(base / part) for part in PARTS)
    both = ["--pretrained_model_name_or_path", pipeline, "--clip_model", f"local-dir:{clip}"]
    seeds = map(str, range(EVALUATION_SEEDS))
    judged = [*both, "--judge_name_or_path", judge]
    learnt = ["--num_concept_images", str(PROBE_PHOTOGRAPHS), "--concept_images"]
    return World(
        [*both, "--reward_model_name_or_path", reward],
        [*judged, "--seeds", *seeds],
        lambda name: [*judged, *learnt, str(photographs / name)],
    )


def measure(measured: list[Erasure], args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """The class-wise figures by pipeline or method, and by class.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    base, forgetting = args.base, args.output_dir / "forgetting"
    of: list[tuple[str, str, list[str]]] = [(BASE, "base", [])]
    for name in CLASSES:
        if (base / pipeline_name(name)).is_dir():
            of.append(
                (
                    WITHOUT,
                    pipeline_name(name),
                    ["--pipeline", str(base / pipeline_name(name)), "--forgotten", name],
                )
            )
    for erasure in measured:
        directory = erasure.directory(args.output_dir)
        of.append(
            (
                NAMES[erasure.method],
                directory.name,
                ["--adapter", str(directory), "--forgotten", erasure.concept],
            )
        )
    jobs = []
    for _, name, which in of:
        output = forgetting / f"{name}.json"
        given = ["--base", str(base), "--num_images", str(args.num_images), *which, "--output", str(output)]
        jobs.append(Job(["-m", "benchmarks.photos.forgetting", *given], output, output.with_suffix(".log")))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (who, *_), figures in zip(of, run_jobs(jobs, args.jobs, "class by class"), strict=True):
        found.setdefault(who, {}).update(figures)
    return found


def draw(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """The pictures."""
    plot(runs, args.output_dir / "comparison.png")
    pipe, judge, seed = (
        load_pipeline(args.base / "pipeline"),
        Judge.from_pretrained(args.base / "judge"),
        args.seeds[0],
    )
    for name in args.classes:
        adapters = {"base": None} | {
            NAMES[m]: Erasure(m, name, seed).directory(args.output_dir) for m in args.methods
        }
        title = f"Erased: {name} (training seed {seed})"
        method_grid(
            pipe, JudgeExamination(judge, [name], ""), adapters, 0, args.output_dir / f"{name}.png", title
        )
    for method in args.methods:
        rows = {}
        for name in args.classes:
            sides = {"base": None, "erased": Erasure(method, name, seed).directory(args.output_dir)}
            drawn = draw_rows(pipe, sides, [PROMPT.format(object=name)], range(PICTURED))
            rows[name] = drawn["base"] + drawn["erased"]
        captions = [f"{side}, seed {i}" for side in ("base", "erased") for i in range(PICTURED)]
        title = f"Each class before and after it was erased: {NAMES[method]} (training seed {seed})"
        picture(
            rows,
            captions,
            [RETAIN] * PICTURED + [FORGET] * PICTURED,
            args.output_dir / f"erased-{method}.png",
            title,
        )


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=Path("runs/photos"),
        metavar="DIR",
        help="What `python -m benchmarks.worlds.photos` has written.",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(NAMES), default=list(NAMES), help="Which methods to compare."
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        choices=CLASSES,
        default=CLASSES,
        help="What to erase, each in runs of its own.",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="Training seeds; the first is that of the class-wise protocol.",
    )
    parser.add_argument(
        "--probe",
        nargs="+",
        choices=CLASSES,
        default=[],
        help="Erasures of these, of the first training seed, are probed too.",
    )
    parser.add_argument(
        "--num_images",
        type=positive_int,
        default=NUM_IMAGES,
        help="Images of the forgotten class in the class-wise protocol.",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=os.cpu_count() or 1, help="Runs at a time, one thread each."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/forgetting"),
        help="Where runs, tables, JSON and pictures are written.",
    )
    args = parser.parse_args(input_args)
    if unknown := [name for name in args.probe if name not in args.classes]:
        parser.error(f"--probe {unknown[0]} is none of --classes.")
    return args


def main(args: argparse.Namespace) -> None:
    here = world(args.base, args.output_dir / "photographs")
    erasures = [
        Erasure(method, name, seed) for seed in args.seeds for method in args.methods for name in args.classes
    ]
    runs = run_all(erasures, args.output_dir, args.jobs, here)
    if args.probe:
        save_photographs(args.base, args.probe, args.output_dir / "photographs")
    probed = probe_all(
        [e for e in erasures if e.seed == args.seeds[0] and e.concept in args.probe],
        args.output_dir,
        args.jobs,
        here,
    )
    measured = measure([erasure for erasure in erasures if erasure.seed == args.seeds[0]], args)
    tables = {"All classes": table(runs)}
    tables |= {
        f"Class by class: {NAMES[method]}": by_class([run for run in runs if run["method"] == method])
        for method in args.methods
    }
    tables[f"{args.num_images} images of the class, training seed {args.seeds[0]}"] = forgetting_table(
        measured, args.classes
    )
    text = "\n\n".join(f"## {title}\n\n{rows}" for title, rows in tables.items()) + sections(probed) + "\n"
    write_aside(args.output_dir / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    kept = (
        json.dumps({"runs": runs, "forgetting": measured, "probes": probed}, indent=2, ensure_ascii=False)
        + "\n"
    )
    write_aside(args.output_dir / "comparison.json", lambda path: path.write_text(kept, encoding="utf-8"))
    draw(args, runs)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
