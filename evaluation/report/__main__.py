"""One HTML file about a run: `python -m evaluation.report RUN_DIR` writes RUN_DIR/report.html.

RUN_DIR is what training, `python -m evaluation` or `python -m evaluation.probes` wrote; the report shows
whatever is there. Images and charts lie in the file itself, and it asks nobody for anything. Pictures that
the model card shows and that are missing are written beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from common.errors import friendly_errors
from common.files import write_aside
from evaluation.grid import Pair, before_after
from evaluation.pareto import pareto
from evaluation.protocol import grid_title, pareto_title
from evaluation.report.page import page
from evaluation.report.run import Run
from evaluation.report.sections import SECTIONS
from hub.card import GRID_NAME, listed

REPORT_NAME, PARETO_NAME = "report.html", "pareto.png"


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        metavar="RUN_DIR",
        help="Directory of a training run, an evaluation, or an adapter with its results.json.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"Where the report is written. Default: {REPORT_NAME} in RUN_DIR.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    run = Run.read(args.run_dir)
    written = write_pictures(run)
    output = args.output or args.run_dir / REPORT_NAME
    erased = ", ".join(listed((run.results or run.probes).get("concept"))) or "a concept"
    content = page(f"Erased: {erased}", [section(run) for section in SECTIONS])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(output, lambda aside: aside.write_text(content, encoding="utf-8"))
    print(f"wrote {', '.join(map(str, [output, *written]))}")


def write_pictures(run: Run) -> list[Path]:
    """The pictures that the model card uses, where they are missing and can be made; which were written."""
    written, grid, curve = [], run.directory / GRID_NAME, run.directory / PARETO_NAME
    if run.shown and not grid.exists():
        pairs = [
            Pair(one.prompt, Image.open(one.before), Image.open(one.after), one.forget) for one in run.shown
        ]
        before_after(pairs, grid, grid_title(run.results))
        written.append(grid)
    if run.results.get("scales") and not curve.exists():
        pareto(run.results["scales"], curve, pareto_title(run.results))
        written.append(curve)
    return written


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
