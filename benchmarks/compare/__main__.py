"""Our default beside published methods on the bundled canvas: `python -m benchmarks.compare`.

Every method erases every concept with every seed, with one set of settings for all concepts
(docs/baselines.md), from the same base and the same spec; then `python -m evaluation` judges the same images
of all. A run is the directory of an adapter, `OUTPUT_DIR/runs/<method>-<concept>-<seed>`, and what has its
results.json is not run again. Written are table.md with the figures published for UnlearnCanvas in a table of
their own, comparison.json, comparison.png (UA against IRA and CRA), and for each concept a picture of what
all methods draw for the same prompts and seed. The erasures of the concepts of `--probe` are probed too
(docs/robustness.md), which takes longer than
all the rest of a run.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import canvas
from benchmarks.canvas import CONCEPTS, slug
from benchmarks.compare import published
from benchmarks.compare.grid import method_grid
from benchmarks.compare.methods import NAMES
from benchmarks.compare.probes import probe_all, sections
from benchmarks.compare.report import plot, table
from benchmarks.compare.runs import Erasure, World, run_all
from common.errors import friendly_errors
from common.files import write_aside
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from pipelines.base import load_pipeline


def write_text(path: Path, text: str) -> None:
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(NAMES), default=list(NAMES), help="Which methods to compare."
    )
    parser.add_argument(
        "--concepts",
        nargs="+",
        default=[*CONCEPTS, "Pop Art style", "house"],
        help="What to erase, each in runs of its own.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Training seeds.")
    parser.add_argument(
        "--probe",
        nargs="+",
        default=[],
        metavar="CONCEPT",
        help="Erasures of these, of the first training seed, are probed too.",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/compare"),
        help="Where runs, tables, JSON and pictures are written.",
    )
    args = parser.parse_args(input_args)
    if unknown := [concept for concept in args.probe if concept not in args.concepts]:
        parser.error(f"--probe {unknown[0]!r} is none of --concepts: {', '.join(args.concepts)}.")
    return args


def main(args: argparse.Namespace) -> None:
    erasures = [
        Erasure(method, concept, seed)
        for seed in args.seeds
        for method in args.methods
        for concept in args.concepts
    ]
    runs = run_all(erasures, args.output_dir, args.jobs, World())
    probed = probe_all(
        [e for e in erasures if e.seed == args.seeds[0] and e.concept in args.probe],
        args.output_dir,
        args.jobs,
        World(),
    )
    text = f"{table(runs)}{sections(probed)}\n\n## Published for UnlearnCanvas\n\n{published.table()}\n"
    write_text(args.output_dir / "table.md", text)
    write_text(
        args.output_dir / "comparison.json",
        json.dumps({"runs": runs, "probes": probed}, indent=2, ensure_ascii=False) + "\n",
    )
    plot(runs, args.output_dir / "comparison.png")
    pipe, judge, seed = load_pipeline(canvas.PIPELINE), Judge.from_pretrained(canvas.JUDGE), args.seeds[0]
    for concept in args.concepts:
        adapters = {"base": None} | {
            NAMES[m]: Erasure(m, concept, seed).directory(args.output_dir) for m in args.methods
        }
        path = args.output_dir / f"{slug(concept)}.png"
        method_grid(
            pipe,
            JudgeExamination(judge, [concept], ""),
            adapters,
            0,
            path,
            f"Erased: {concept} (training seed {seed})",
        )
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
