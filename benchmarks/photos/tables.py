"""Tables of what was forgotten, class by class. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import markdown, mean, number

WITHOUT = "trained without the class"
JUDGED = ("UA", "IRA", "NRA")
COSTS = ("iterations", "images", "seconds")
CLASS_WISE = {"UA": 1, "probability": 3, "entropy": 2, "FID": 2}
"""Metrics of `forgetting`, and their decimals."""

Metrics = Mapping[str, float]


def by_class(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a class, means over its training seeds, in parentheses the base's; below it the
    means over the classes."""
    means = {}
    for name in dict.fromkeys(run["concept"] for run in runs):
        of = [run for run in runs if run["concept"] == name]
        row = {metric: mean(run["adapter"].get(metric) for run in of) for metric in JUDGED}
        row |= {f"base {metric}": mean(run["base"].get(metric) for run in of) for metric in JUDGED}
        means[name] = row | {cost: mean(run["training"].get(cost) for run in of) for cost in COSTS}
    overall = {metric: mean(row[metric] for row in means.values()) for metric in next(iter(means.values()))}
    rows = [_class_row(name, row) for name, row in [*means.items(), ("mean", overall)]]
    return markdown(["class", *(f"{metric} (base)" for metric in JUDGED), *COSTS], rows)


def _class_row(name: str, row: Mapping[str, float | None]) -> list[str]:
    judged = [f"{number(row[metric])} ({number(row[f'base {metric}'])})" for metric in JUDGED]
    return [name, *judged, *(number(row[cost], int(cost == "iterations")) for cost in COSTS)]


def forgetting_table(measured: Mapping[str, Mapping[str, Metrics]], classes: Sequence[str]) -> str:
    """Markdown: a row a method, means over the classes that it was measured on, and how many these are.

    Args:
        measured: metrics by method and class.
        classes: those to count.
    """
    rows = []
    for who, by_name in measured.items():
        of = [metrics for name, metrics in by_name.items() if name in classes]
        if of:
            cells = [number(mean(m[name] for m in of), digits) for name, digits in CLASS_WISE.items()]
            rows.append([who, str(len(of)), *cells])
    return markdown(["method", "classes", *CLASS_WISE], rows)
