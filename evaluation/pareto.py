"""The price of forgetting: UA against IRA and CRA at several weights of one adapter."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.files import write_bytes
from hub.results import interval

KEPT = {"IRA": "#1b6e4b", "CRA": "#1f5fa8"}
KEPT_AS = {"IRA": "its kind is still drawn right", "CRA": "all else is still drawn right"}


def pareto(sides: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Write the curves as PNG, one panel for each metric the judge has: a point for each weight, with the
    95 % intervals of both metrics as bars.

    Args:
        sides: metrics as `evaluation.protocol.evaluate` returns them under `scales`, each with its `scale`.
        title: its first line is the headline.
    """
    sides = sorted(sides, key=lambda side: side["scale"])
    names = [name for name in KEPT if any(side.get(name) is not None for side in sides)]
    figure = Figure(figsize=(1.0 + 5.0 * max(1, len(names)), 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False):
        points = with_intervals(sides, name)
        if not points:
            continue
        bars = {"xerr": _bars(points, "UA"), "yerr": _bars(points, name)}
        x, y = ([point[of] for point in points] for of in ("UA", name))
        axes.errorbar(
            x, y, **bars, color=KEPT[name], marker="o", markersize=5, linewidth=1.6, elinewidth=0.6, capsize=2
        )
        lowest = max(0.0, min(point["ci95"][name][0] for point in points) - 2)
        height = 100 - lowest
        axes.set_ylim(lowest, 100 + 0.12 * height)
        axes.set_xlim(-4, 104)
        for at, scales in _places(points, name, 0.03 * height):
            right = at[0] > 50
            text = ", ".join(f"{scale:g}" for scale in scales)
            axes.annotate(
                text,
                at,
                textcoords="offset points",
                xytext=(-4 if right else 4, 6),
                ha="right" if right else "left",
                fontsize=8,
            )
        axes.set_xlabel("UA: the concept is gone (percent)")
        axes.set_ylabel(f"{name}: {KEPT_AS[name]} (percent)")
        axes.grid(alpha=0.3)
    figure.savefig(picture := io.BytesIO(), format="png")
    write_bytes(Path(path), picture.getvalue())


def with_intervals(sides: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """Those that know UA and another metric, each with its interval."""
    return [
        side for side in sides if all(side.get(of) is not None and interval(side, of) for of in ("UA", name))
    ]


def _places(
    points: Sequence[Mapping[str, Any]], name: str, near: float
) -> list[tuple[tuple[float, float], list[float]]]:
    """Positions of the labels, each with its weights: points that lie on one another share a label."""
    places: list[tuple[tuple[float, float], list[float]]] = []
    for point in points:
        for (x, y), scales in places:
            if abs(x - point["UA"]) < 3 and abs(y - point[name]) < near:
                scales.append(point["scale"])
                break
        else:
            places.append(((point["UA"], point[name]), [point["scale"]]))
    return places


def _bars(points: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """The lengths of each interval below and above its point."""
    below = [max(0.0, point[name] - point["ci95"][name][0]) for point in points]
    above = [max(0.0, point["ci95"][name][1] - point[name]) for point in points]
    return [below, above]
