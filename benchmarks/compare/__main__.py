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
from benchmarks.compare.grid import concept_grids
from benchmarks.compare.methods import NAMES
from benchmarks.compare.probes import check_probed, probe_all, sections
from benchmarks.compare.runs import Erasure, World, run_all
from benchmarks.compare.tables import plot, table
from benchmarks.report import write_json, write_text
from common.errors import friendly_errors
from common.flags import SEED, flag, parse
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
    seeds: tuple[int, ...] = flag((0, 1, 2), within=SEED, help="Training seeds.")
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
    def shown(self) -> list[Erasure]:
        """Those of the first training seed, which are drawn, and probed where that is asked."""
        return [erasure for erasure in self.erasures if erasure.seed == self.seeds[0]]


def parse_config(arguments: Sequence[str] | None = None) -> CompareConfig:
    """The settings of a command line."""
    return parse(CompareConfig, arguments, __doc__, prog="python -m benchmarks.compare")


def main(config: CompareConfig) -> None:
    check_probed(config.probe, config.concepts, "concepts")
    output_dir, shown = config.output_dir, config.shown
    runs = run_all(config.erasures, output_dir, config.jobs, World())
    probed = probe_all([e for e in shown if e.concept in config.probe], output_dir, config.jobs, World())
    text = f"{table(runs)}{sections(probed)}\n\n## Published for UnlearnCanvas\n\n{published.table()}"
    write_text(output_dir / "table.md", text)
    write_json(output_dir / "comparison.json", {"runs": runs, "probes": probed})
    plot(runs, output_dir / "comparison.png")
    judge = Judge.from_pretrained(canvas.JUDGE)
    pipe = load_pipeline(canvas.PIPELINE)
    concept_grids(pipe, lambda concept: JudgeExamination(judge, [concept], ""), shown, output_dir)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
