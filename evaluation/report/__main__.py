"""One HTML file about a run: `python -m evaluation.report RUN_DIR` writes RUN_DIR/report.html.

RUN_DIR is the output of training, `python -m evaluation` or `python -m evaluation.probes`; the report shows
whatever is there. Images and charts are in the file itself, which loads nothing. Missing pictures of the
model card are written next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import friendly_errors
from common.files import make_directory, write_text
from common.flags import flag, parse
from common.pictures import read_picture
from evaluation.grid import Pair, before_after
from evaluation.pareto import pareto
from evaluation.protocol import grid_title, pareto_title
from evaluation.report.page import page
from evaluation.report.run import Run
from evaluation.report.sections import SECTIONS
from hub.card import GRID_NAME
from hub.results import listed

REPORT_NAME, PARETO_NAME = "report.html", "pareto.png"


@dataclass(frozen=True)
class ReportConfig:
    """Report."""

    run_dir: Path = flag(
        positional=True,
        metavar="RUN_DIR",
        help="Directory of a training run, an evaluation, or an adapter with its results.json.",
    )
    output: Path | None = flag(
        None,
        metavar="FILE",
        help=f"Where the report is written. Default: {REPORT_NAME} in RUN_DIR.",
    )


def parse_config(arguments: Sequence[str] | None = None) -> ReportConfig:
    """The settings of a command line."""
    return parse(ReportConfig, arguments, __doc__, prog="python -m evaluation.report")


def main(config: ReportConfig) -> None:
    run = Run.read(config.run_dir)
    written = write_pictures(run)
    output = config.output or config.run_dir / REPORT_NAME
    erased = ", ".join(listed((run.results or run.probes).get("concept"))) or "a concept"
    content = page(f"Erased: {erased}", [section(run) for section in SECTIONS])
    make_directory(output.parent)
    write_text(output, content)
    print(f"wrote {', '.join(map(str, [output, *written]))}")


def write_pictures(run: Run) -> list[Path]:
    """Write the model card's pictures that are missing and can be made; which were written."""
    written, grid, curve = [], run.directory / GRID_NAME, run.directory / PARETO_NAME
    if run.shown and not grid.exists():
        pairs = [
            Pair(one.prompt, read_picture(one.before), read_picture(one.after), one.forget)
            for one in run.shown
        ]
        before_after(pairs, grid, grid_title(run.results))
        written.append(grid)
    if run.results.get("scales") and not curve.exists():
        pareto(run.results["scales"], curve, pareto_title(run.results))
        written.append(curve)
    return written


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
