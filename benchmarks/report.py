"""What every benchmark writes: Markdown tables, means with their 95 % interval, text and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common import files

MISSING = "–"
"""What a table shows where there is no number."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every row has as many cells as the header."""
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        assert len(row) == len(header), f"{len(row)} cells under {len(header)} headings"
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sections(tables: Mapping[str, str]) -> str:
    """Tables by title, each under a heading."""
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables.items())


def bold(text: str) -> str:
    """What a table marks."""
    return f"**{text}**"


def number(value: float | None, digits: int = 1) -> str:
    """A number with `digits` decimals, or that there is none."""
    return MISSING if value is None else f"{value:.{digits}f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_interval(summary: Mapping[str, Any], digits: int = 1, *, least: float | None = None) -> str:
    """`98.0 [91.6, 100.0]`: a mean and its interval, if it has one, as `evaluation.metrics.summarize` has
    them.

    Args:
        least: the smallest that the value can be; the interval does not begin below it.
    """
    if summary["mean"] is None or summary["ci95"] is None:
        return number(summary["mean"], digits)
    low, high = summary["ci95"]
    low = low if least is None else max(least, low)
    return f"{summary['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def write_text(path: Path, text: str) -> None:
    """Write a text with a line break at its end; the file is complete or absent."""
    files.make_directory(path.parent)
    files.write_text(path, text.rstrip("\n") + "\n")


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file is complete or absent."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False))
