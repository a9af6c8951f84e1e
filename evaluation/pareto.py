"""The price of forgetting: UA against IRA and CRA at several weights of one adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from networks.checkpoint import write_aside

KEPT = {"IRA": "#1b6e4b", "CRA": "#1f5fa8"}


def pareto(sides: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Write the curve as PNG: a point for each weight, with the 95 % intervals of both figures as bars; what no judge says is left out.

    Args:
        sides: figures as `evaluation.protocol.evaluate` gives them under `scales`, each with its `scale`.
        title: its first line is the headline.
    """
    figure = Figure(figsize=(7.2, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    headline, _, subtitle = title.partition("\n")
    axes.set_title(f"{headline}\n{subtitle}", fontsize=10, parse_math=False)
    for name, colour in KEPT.items():
        points = sorted((side for side in sides if side.get(name) is not None and side.get("UA") is not None), key=lambda side: side["scale"])
        if not points:
            continue
        x, y = ([point[of] for point in points] for of in ("UA", name))
        bars = {"xerr": _bars(points, "UA"), "yerr": _bars(points, name)}
        axes.errorbar(x, y, **bars, color=colour, marker="o", markersize=5, linewidth=1.6, elinewidth=0.7, capsize=2, label=f"{name} against UA")
        for point in points:
            at = (point["UA"], point[name])
            axes.annotate(f"{point['scale']:g}", at, textcoords="offset points", xytext=(5, 5), fontsize=8, color=colour)
    axes.set_xlabel("UA: the concept is gone (percent)")
    axes.set_ylabel("the rest is drawn right (percent)")
    axes.set_xlim(-4, 104)
    axes.set_ylim(-4, 104)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False, title="numbers: weight of the adapter")
    write_aside(Path(path), lambda aside: figure.savefig(aside, format="png"))


def _bars(points: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """How far each interval reaches below and above its point."""
    below = [max(0.0, point[name] - point["ci95"][name][0]) for point in points]
    above = [max(0.0, point["ci95"][name][1] - point[name]) for point in points]
    return [below, above]
