"""Our default beside published methods on the bundled canvas: `python -m benchmarks.compare`.

Every method erases every concept with every seed, with one set of settings for all concepts
(docs/baselines.md), from the same base and the same spec; then `python -m evaluation` judges the same images
of all. A run is the directory of an adapter, `OUTPUT_DIR/runs/<method>-<concept>-<seed>`, and what has its
results.json is not run again. Written are table.md with the metrics published for UnlearnCanvas in a table of
their own, comparison.json, comparison.png (UA against IRA and CRA), and for each concept a picture of what
all methods draw for the same prompts and seed. The erasures of the concepts of `--probe` are probed too
(docs/robustness.md), which takes longer than all the rest of a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import canvas
from benchmarks.canvas import CONCEPTS
from benchmarks.compare import published
from benchmarks.compare.grid import method_grid
from benchmarks.compare.methods import NAMES
from benchmarks.compare.probes import probe_all, sections
from benchmarks.compare.runs import Erasure, World, run_all
from benchmarks.compare.tables import plot, table
from benchmarks.jobs import slug
from benchmarks.report import write_json, write_text
from common.errors import friendly_errors
from common.flags import flag, parse
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from pipelines.base import load_pipeline


@dataclass(frozen=True)
class CompareConfig:
    """Runs."""

    methods: tuple[str, ...] = flag(
        tuple(NAMES), choices=tuple(NAMES), help="Which methods to compare. Default: all."
    )
    concepts: tuple[str, ...] = flag(
        (*CONCEPTS, "Pop Art style", "house"), help="What to erase, each in runs of its own."
    )
    seeds: tuple[int, ...] = flag((0, 1, 2), help="Training seeds.")
    probe: tuple[str, ...] = flag(
        (),
        metavar="CONCEPT",
        help="Erasures of these, of the first training seed, are probed too. Default: none.",
    )
    jobs: int = flag(
        os.cpu_count() or 1,
        at_least=1,
        help="Runs at a time, one thread each. Default: the number of cores.",
    )
    output_dir: Path = flag(Path("runs/compare"), help="Where runs, tables, JSON and pictures are written.")

    @property
    def erasures(self) -> list[Erasure]:
        """All of them."""
        return [Erasure(m, c, seed) for seed in self.seeds for m in self.methods for c in self.concepts]

    @property
    def probed(self) -> list[Erasure]:
        """Those that are probed."""
        first = self.seeds[0]
        return [e for e in self.erasures if e.seed == first and e.concept in self.probe]

    def check(self) -> None:
        """
        Raises:
            ValueError: something is to be probed that is not erased.
        """
        if unknown := [concept for concept in self.probe if concept not in self.concepts]:
            raise ValueError(f"--probe {unknown[0]!r} is none of --concepts: {', '.join(self.concepts)}.")


def draw_grids(config: CompareConfig) -> None:
    """A picture for each concept: what the base and all methods draw for the same prompts and seed."""
    pipe, judge, seed = load_pipeline(canvas.PIPELINE), Judge.from_pretrained(canvas.JUDGE), config.seeds[0]
    for concept in config.concepts:
        erased = {NAMES[m]: Erasure(m, concept, seed).directory(config.output_dir) for m in config.methods}
        method_grid(
            pipe,
            JudgeExamination(judge, [concept], ""),
            {"base": None} | erased,
            path=config.output_dir / f"{slug(concept)}.png",
            title=f"Erased: {concept} (training seed {seed})",
        )


def parse_config(arguments: Sequence[str] | None = None) -> CompareConfig:
    """The settings of a command line."""
    return parse(CompareConfig, arguments, __doc__, prog="python -m benchmarks.compare")


def main(config: CompareConfig) -> None:
    config.check()
    output_dir = config.output_dir
    runs = run_all(config.erasures, output_dir, config.jobs, World())
    probed = probe_all(config.probed, output_dir, config.jobs, World())
    text = f"{table(runs)}{sections(probed)}\n\n## Published for UnlearnCanvas\n\n{published.table()}"
    write_text(output_dir / "table.md", text)
    write_json(output_dir / "comparison.json", {"runs": runs, "probes": probed})
    plot(runs, output_dir / "comparison.png")
    draw_grids(config)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
