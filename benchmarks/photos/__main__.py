"""Forget each class of CIFAR-10, by our default and by published methods: `python -m benchmarks.photos --base
runs/photos`.

The base is what `python -m benchmarks.worlds.photos` has written. Every method erases every class with every
seed, with the settings it has on the canvas, and the base's judge decides. For one training seed the
class-wise protocol of the literature is measured too (`benchmarks/photos/forgetting.py`), and where a
pipeline lies beside the base that never saw the class (`build --without`), on that as well. What has its
results is not run again. Written are table.md, comparison.json, comparison.png, a picture a class of what all
methods draw for the same prompts and seed, and a picture a method of every class before and after. The
erasures of the classes of `--probe` are probed too, with photographs of the test set wherever images of the
class are learnt from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.compare.grid import FORGET, RETAIN, concept_grids, draw_rows, picture
from benchmarks.compare.methods import BASE, NAMES
from benchmarks.compare.probes import check_probed, probe_all
from benchmarks.compare.probes import sections as probe_sections
from benchmarks.compare.runs import Erasure, World, run_all
from benchmarks.compare.tables import plot, table
from benchmarks.jobs import Job, run_jobs
from benchmarks.photos.forgetting import NUM_IMAGES
from benchmarks.photos.tables import WITHOUT, by_class, forgetting_table
from benchmarks.report import sections, write_json, write_text
from benchmarks.worlds.photos.build import PROMPT, pipeline_name
from benchmarks.worlds.photos.data import CLASSES, load_photos
from common.errors import friendly_errors
from common.flags import SEED, flag, parse
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
        build = f"python -m benchmarks.worlds.photos --output_dir {base}"
        raise ValueError(f"{base} holds no {' and no '.join(missing)}: run `{build}` first.")
    pipeline, clip, reward, judge = (str(base / part) for part in PARTS)
    both = ["--pretrained_model_name_or_path", pipeline, "--clip_model", f"local-dir:{clip}"]
    seeds = map(str, range(EVALUATION_SEEDS))
    judged = [*both, "--judge_name_or_path", judge]
    learnt = ["--num_concept_images", str(PROBE_PHOTOGRAPHS), "--concept_images"]
    return World(
        erase=lambda name: [*both, "--reward_model_name_or_path", reward],
        evaluate=[*judged, "--seeds", *seeds],
        probe=lambda name: [*judged, *learnt, str(photographs / name)],
    )


@dataclass(frozen=True)
class PhotosConfig:
    """Runs."""

    base: Path = flag(
        Path("runs/photos"), metavar="DIR", help="What `python -m benchmarks.worlds.photos` has written."
    )
    methods: tuple[str, ...] = flag(
        tuple(NAMES), choices=tuple(NAMES), help="Which methods to compare. Default: all."
    )
    classes: tuple[str, ...] = flag(
        tuple(CLASSES), choices=tuple(CLASSES), help="What to erase, each in runs of its own. Default: all."
    )
    seeds: tuple[int, ...] = flag(
        (0, 1, 2), within=SEED, help="Training seeds; the first is that of the class-wise protocol."
    )
    probe: tuple[str, ...] = flag(
        (),
        choices=tuple(CLASSES),
        help="Erasures of these, of the first training seed, are probed too. Default: none.",
    )
    num_images: int = flag(
        NUM_IMAGES, at_least=1, help="Images of the forgotten class in the class-wise protocol."
    )
    jobs: int = flag(
        os.cpu_count() or 1,
        at_least=1,
        help="Runs at a time, one thread each. Default: the number of cores.",
    )
    output_dir: Path = flag(
        Path("runs/forgetting"), help="Where runs, tables, JSON and pictures are written."
    )

    @property
    def erasures(self) -> list[Erasure]:
        """All of them."""
        return [Erasure(m, c, seed) for seed in self.seeds for m in self.methods for c in self.classes]

    @property
    def measured(self) -> list[Erasure]:
        """Those of the first training seed, which the class-wise protocol measures."""
        return [erasure for erasure in self.erasures if erasure.seed == self.seeds[0]]

    @property
    def probed(self) -> list[Erasure]:
        """Those that are probed."""
        return [erasure for erasure in self.measured if erasure.concept in self.probe]


def measure(config: PhotosConfig) -> dict[str, dict[str, dict[str, float]]]:
    """The class-wise metrics by pipeline or method, and by class.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    of: list[tuple[str, str, list[str]]] = [(BASE, "base", [])]
    for name in CLASSES:
        pipeline = config.base / pipeline_name(name)
        if pipeline.is_dir():
            of.append((WITHOUT, pipeline.name, ["--pipeline", str(pipeline), "--forgotten", name]))
    for erasure in config.measured:
        directory = erasure.directory(config.output_dir)
        which = ["--adapter", str(directory), "--forgotten", erasure.concept]
        of.append((NAMES[erasure.method], directory.name, which))
    jobs = []
    for _, name, which in of:
        output = config.output_dir / "forgetting" / f"{name}.json"
        given = ["--base", str(config.base), "--num_images", str(config.num_images), *which]
        command = ["-m", "benchmarks.photos.forgetting", *given, "--output", str(output)]
        jobs.append(Job(command, output, output.with_suffix(".log")))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (who, *_), metrics in zip(of, run_jobs(jobs, config.jobs, "class by class"), strict=True):
        found.setdefault(who, {}).update(metrics)
    return found


def draw(config: PhotosConfig, runs: Sequence[Mapping[str, Any]]) -> None:
    """The pictures."""
    plot(runs, config.output_dir / "comparison.png")
    pipe, judge = load_pipeline(config.base / "pipeline"), Judge.from_pretrained(config.base / "judge")
    seed = config.seeds[0]
    concept_grids(pipe, lambda name: JudgeExamination(judge, [name], ""), config.measured, config.output_dir)
    captions = [f"{side}, seed {i}" for side in ("base", "erased") for i in range(PICTURED)]
    for method in config.methods:
        rows = {}
        for name in config.classes:
            sides = {"base": None, "erased": Erasure(method, name, seed).directory(config.output_dir)}
            drawn = draw_rows(pipe, sides, [PROMPT.format(object=name)], range(PICTURED))
            rows[name] = drawn["base"] + drawn["erased"]
        picture(
            rows,
            captions,
            [RETAIN] * PICTURED + [FORGET] * PICTURED,
            path=config.output_dir / f"erased-{method}.png",
            title=f"Each class before and after it was erased: {NAMES[method]} (training seed {seed})",
        )


def all_tables(
    config: PhotosConfig,
    runs: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, str]:
    """The tables but for the probes', by their title."""
    tables = {"All classes": table(runs)}
    for method in config.methods:
        of = [run for run in runs if run["method"] == method]
        tables[f"Class by class: {NAMES[method]}"] = by_class(of)
    title = f"{config.num_images} images of the class, training seed {config.seeds[0]}"
    return tables | {title: forgetting_table(measured, config.classes)}


def parse_config(arguments: Sequence[str] | None = None) -> PhotosConfig:
    """The settings of a command line."""
    return parse(PhotosConfig, arguments, __doc__, prog="python -m benchmarks.photos")


def main(config: PhotosConfig) -> None:
    check_probed(config.probe, config.classes, "classes")
    photographs = config.output_dir / "photographs"
    here = world(config.base, photographs)
    runs = run_all(config.erasures, config.output_dir, config.jobs, here)
    if config.probe:
        save_photographs(config.base, config.probe, photographs)
    probed = probe_all(config.probed, config.output_dir, config.jobs, here)
    measured = measure(config)
    text = sections(all_tables(config, runs, measured)) + probe_sections(probed)
    write_text(config.output_dir / "table.md", text)
    found = {"runs": runs, "forgetting": measured, "probes": probed}
    write_json(config.output_dir / "comparison.json", found)
    draw(config, runs)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
