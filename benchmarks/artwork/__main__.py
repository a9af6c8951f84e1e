"""Forget objects and styles of artwork, by our default and by published methods: `python -m
benchmarks.artwork`.

The base is what `python -m benchmarks.worlds.artwork build` has written. Every method erases every concept
with every seed, with one set of settings, and is told the same: the concept's name and half of the other
objects, or styles, to keep. The base's judge then looks at what names the concept, means it, or draws it all
the same, and at what was never told (`evaluation.artwork`). Where a pipeline lies beside the base that never
saw the concept (`build --without`), it is judged too. What has its results is not run again. Written are
table.md, comparison.json, comparison.png, and for each concept whose adapters are all there a picture of what
the methods draw for the same prompts and seed. The erasures of the concepts of `--probe` are probed too. What
is found of a run is recorded in a file of its own (`--records`), and what is recorded is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.artwork.tables import category_table, metrics
from benchmarks.artwork.world import RECORDS, Base
from benchmarks.compare.grid import concept_grids
from benchmarks.compare.methods import CLOSED_FORMS, NAMES, NEVER
from benchmarks.compare.probes import check_probed, probe_all
from benchmarks.compare.probes import sections as probe_sections
from benchmarks.compare.runs import Erasure, recorded, run_all
from benchmarks.compare.tables import Run, plot, table
from benchmarks.jobs import Job, in_parallel, run_job, slug
from benchmarks.report import sections, write_json, write_text
from benchmarks.worlds.artwork import WEIGHTS
from common.errors import friendly_errors
from common.flags import SEED, flag, parse
from hub.results import RESULTS_NAME
from pipelines.base import load_pipeline

CONCEPTS = (
    *("cat", "pineapple", "rose", "cyclone"),
    *("Noto style", "Fluent 3D style", "Monotone style"),
)
"""Chosen before any of them was erased: objects of four categories, and styles of which each has one that is
near to it. Settings are chosen on others (benchmarks/baselines/sweep.py)."""


@dataclass(frozen=True)
class ArtworkConfig:
    """Runs."""

    base: Path = flag(
        WEIGHTS, metavar="DIR", help="What `python -m benchmarks.worlds.artwork build` has written."
    )
    methods: tuple[str, ...] = flag(
        tuple(NAMES), choices=tuple(NAMES), help="Which methods to compare. Default: all."
    )
    concepts: tuple[str, ...] = flag(CONCEPTS, help="What to erase, each in runs of its own.")
    seeds: tuple[int, ...] = flag((0,), within=SEED, help="Training seeds of every method.")
    more_seeds: tuple[int, ...] = flag((1, 2), within=SEED, help="Further training seeds of --repeated.")
    repeated: tuple[str, ...] = flag(
        ("ours", "esd", *CLOSED_FORMS),
        choices=tuple(NAMES),
        help="Methods that are run with --more_seeds too; closed forms are judged on other images.",
    )
    probe: tuple[str, ...] = flag(
        (),
        metavar="CONCEPT",
        help="Erasures of these, of the first training seed, are probed too. Default: none.",
    )
    records: Path = flag(
        RECORDS,
        metavar="DIR",
        help="Where a file a run is kept, of what its judge found. Default: what the project ships.",
    )
    jobs: int = flag(
        os.cpu_count() or 1,
        at_least=1,
        help="Runs at a time, one thread each. Default: the number of cores.",
    )
    output_dir: Path = flag(
        Path("runs/artwork-comparison"), help="Where runs, tables, JSON and pictures are written."
    )

    @property
    def erasures(self) -> list[Erasure]:
        """All of them; a concept's are together."""
        return [
            Erasure(method, concept, seed)
            for concept in self.concepts
            for method in self.methods
            for seed in (*self.seeds, *(self.more_seeds if method in self.repeated else ()))
        ]

    @property
    def shown(self) -> list[Erasure]:
        """Those of the first training seed, which are drawn, and probed where that is asked."""
        return [erasure for erasure in self.erasures if erasure.seed == self.seeds[0]]


def judge_never(config: ArtworkConfig, base: Base, runs: Sequence[Run]) -> list[Run]:
    """The same for the pipelines that never saw a concept, beside the base that did.

    Raises:
        RuntimeError: an evaluation failed; the message names its log.
    """
    records = base.records(config.records)

    def record(concept: str) -> Run | None:
        name, pipeline = f"{NEVER}-{slug(concept)}-0", base.never_saw(concept)
        if not pipeline.is_dir() and not records.path(name).is_file():
            return None
        return records.of(name, lambda: recorded(judged(concept, pipeline)))

    def judged(concept: str, pipeline: Path) -> dict[str, Any]:
        output = config.output_dir / NEVER / slug(concept)
        given = ["--concept", concept, "--output_dir", str(output), *base.judged(pipeline)]
        found = run_job(Job(["-m", "evaluation", *given], output / RESULTS_NAME, output.with_suffix(".log")))
        before = next(run["base"] for run in runs if run["concept"] == concept)
        known = {"method": NEVER, "concept": concept, "seed": 0, "adapter_mb": None, "training": {}}
        return found | known | {"base": before}

    found = in_parallel(record, config.concepts, config.jobs, "never saw it")
    return [run for run in found if run is not None]


def parse_config(arguments: Sequence[str] | None = None) -> ArtworkConfig:
    """The settings of a command line."""
    return parse(ArtworkConfig, arguments, __doc__, prog="python -m benchmarks.artwork")


def main(config: ArtworkConfig) -> None:
    check_probed(config.probe, config.concepts, "concepts")
    base, output_dir, shown = Base(config.base), config.output_dir, config.shown
    base.check()
    world = base.world(config.concepts, output_dir / "told", config.records)
    runs = run_all(config.erasures, output_dir, config.jobs, world)
    runs += judge_never(config, base, runs)
    probed = probe_all([e for e in shown if e.concept in config.probe], output_dir, config.jobs, world)
    tables = {"All concepts": table(runs, metrics), "Category prompts": category_table(runs)}
    text = sections(tables) + probe_sections(probed)
    write_text(output_dir / "table.md", text)
    write_json(output_dir / "comparison.json", {"runs": runs, "probes": probed})
    plot(runs, output_dir / "comparison.png", metrics, forgotten="forgotten", kept=("kept",))
    drawn = [e for e in shown if (e.directory(output_dir) / RESULTS_NAME).is_file()]
    complete = [e for e in drawn if sum(other.concept == e.concept for other in drawn) == len(config.methods)]
    concept_grids(load_pipeline(base.directory / "pipeline"), base.examination, complete, output_dir)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
