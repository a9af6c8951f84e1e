"""Tables of what was forgotten, class by class. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

WITHOUT = "trained without the class"
JUDGED = ("UA", "IRA", "NRA")
COSTS = ("iterations", "images", "seconds")
CLASS_WISE = {"UA": 1, "probability": 3, "entropy": 2, "FID": 2}
"""Figures of `forgetting`, and their decimals."""

Figures = Mapping[str, float]


def by_class(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a class, means over its training seeds, in parentheses the base's; below it the
    means over the classes."""
    rows = []
    for name in dict.fromkeys(run["concept"] for run in runs):
        of = [run for run in runs if run["concept"] == name]
        row = {figure: _mean([run["adapter"].get(figure) for run in of]) for figure in JUDGED}
        row |= {f"base {figure}": _mean([run["base"].get(figure) for run in of]) for figure in JUDGED}
        rows.append((name, row | {cost: _mean([run["training"].get(cost) for run in of]) for cost in COSTS}))
    rows.append(("mean", {figure: _mean([row[figure] for _, row in rows]) for figure in rows[0][1]}))
    lines = [
        f"| class | {' | '.join(f'{figure} (base)' for figure in JUDGED)} | {' | '.join(COSTS)} |",
        "|---|" + "---|" * (len(JUDGED) + len(COSTS)),
    ]
    for name, row in rows:
        judged = [f"{_cell(row[figure], 1)} ({_cell(row[f'base {figure}'], 1)})" for figure in JUDGED]
        lines.append(
            f"| {name} | {' | '.join(judged)} | {' | '.join(_cell(row[cost], int(cost == 'iterations')) for cost in COSTS)} |"
        )
    return "\n".join(lines)


def forgetting_table(measured: Mapping[str, Mapping[str, Figures]], classes: Sequence[str]) -> str:
    """Markdown: a row a method, means over the classes that it was measured on, and how many these are.

    Args:
        measured: figures by method and class.
        classes: those to count.
    """
    lines = [f"| method | classes | {' | '.join(CLASS_WISE)} |", "|---|---|" + "---|" * len(CLASS_WISE)]
    for who, by_name in measured.items():
        of = [figures for name, figures in by_name.items() if name in classes]
        if of:
            cells = [
                _cell(_mean([figures[name] for figures in of]), digits) for name, digits in CLASS_WISE.items()
            ]
            lines.append(f"| {who} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
