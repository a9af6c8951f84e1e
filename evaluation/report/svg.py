"""Small charts as inline SVG: text stays text, and colours follow the page's light or dark scheme.

matplotlib's SVG takes four times the bytes for 40 points, repeats its ids from chart to chart, and writes its
colours into each element, where no scheme reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.markup import Html

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 34
ROW, LABELS = 26, 250

Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A value in percent with its interval, and (hollow) the value it is compared with."""

    label: str
    value: float
    interval: Sequence[float] | None
    beside: float | None = None


def lines(
    title: str, series: Mapping[str, Sequence[Point]], x_label: str, bounds: tuple[float, float] | None = None
) -> Html:
    """A chart with a line for each series.

    Args:
        series: finite points by name; empty ones are left out.
        bounds: of the vertical axis; None fits the points.
    """
    series = {name: sorted(points) for name, points in series.items() if points}
    if not series:
        return Html()
    xs, ys = ([point[axis] for points in series.values() for point in points] for axis in (0, 1))
    low, high = bounds or _padded(min(ys), max(ys))
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_text(LEFT, 15, title, "start", "t")]
    for value in (low, (low + high) / 2, high):
        y = place((left, value))[1]
        parts += [_line("g", LEFT, WIDTH - RIGHT, y, y), _text(LEFT - 5, y + 3.5, f"{value:.3g}", "end")]
    for value, anchor in ((left, "start"), (right, "end")):
        parts.append(_text(place((value, low))[0], HEIGHT - BOTTOM + 14, f"{value:g}", anchor))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 14, x_label, "middle"))
    at: float = LEFT
    for number, (name, points) in enumerate(series.items()):
        placed = [place(point) for point in points]
        path = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(Html.fill('<polyline class="s{colour}" points="{path}"/>', colour=number % 4, path=path))
        parts += [_dot(f"s{number % 4}", x, y, 2.2 if len(placed) < 60 else 1) for x, y in placed]
        if len(series) > 1:
            parts += [
                _dot(f"s{number % 4}", at + 4, HEIGHT - 9, 4),
                _text(at + 12, HEIGHT - 5, name, "start"),
            ]
            at += 24 + 6.2 * len(name)
    return _svg(WIDTH, HEIGHT, title, parts)


def pareto(title: str, points: Sequence[tuple[Point, Sequence[Point], str]], x_label: str) -> Html:
    """A chart of one metric against another, in percent, joined in their order.

    Args:
        points: for each (x, y), the intervals of x and of y, and a label.
    """
    low = max(0.0, math.floor(min(bounds[1][0] for _, bounds, _ in points) / 10) * 10)
    low = min(low, 90.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + x / 100 * (WIDTH - LEFT - RIGHT), 1), round(
            TOP + (100 - y) / (100 - low) * (HEIGHT - TOP - BOTTOM), 1
        )

    parts = [_text(LEFT, 15, title, "start", "t")]
    for value in (low, (low + 100) / 2, 100.0):
        y = place(0, value)[1]
        parts += [_line("g", LEFT, WIDTH - RIGHT, y, y), _text(LEFT - 5, y + 3.5, f"{value:g}", "end")]
    for value in (0, 50, 100):
        parts.append(_text(place(value, low)[0], HEIGHT - BOTTOM + 14, f"{value:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    placed = [place(*point) for point, _, _ in points]
    path = " ".join(f"{x},{y}" for x, y in placed)
    parts.append(Html.fill('<polyline class="s0" points="{path}"/>', path=path))
    labelled: dict[tuple[int, int], list[str]] = {}
    for (x, y), (point, (across, along), label) in zip(placed, points, strict=True):
        (x1, _), (x2, _) = place(across[0], point[1]), place(across[1], point[1])
        (_, y1), (_, y2) = place(point[0], along[0]), place(point[0], along[1])
        parts += [_line("e", x1, x2, y, y), _line("e", x, x, y1, y2), _dot("s0", x, y, 3.5)]
        labelled.setdefault((round(x / 12), round(y / 12)), []).append(label)
    for (x, y), names in labelled.items():
        anchor = "end" if x * 12 > WIDTH / 2 else "start"
        parts.append(_text(x * 12 + (-7 if anchor == "end" else 7), y * 12 + 14, ", ".join(names), anchor))
    return _svg(WIDTH, HEIGHT, title, parts)


def bars(title: str, rows: Sequence[Bar], legend: tuple[str, str]) -> Html:
    """A row for each value from 0 to 100: a dot on its interval, and a hollow dot for the value it is
    compared with."""
    width, height = 640, 34 + ROW * len(rows) + 22

    def place(value: float) -> float:
        return round(LABELS + value / 100 * (width - LABELS - 20), 1)

    parts = [_text(0, 13, title, "start", "t")]
    for value in (0, 25, 50, 75, 100):
        parts += [
            _line("g", place(value), place(value), 24, height - 22),
            _text(place(value), height - 8, str(value), "middle"),
        ]
    filled, hollow = legend
    parts += [_dot("s1", LABELS, 9, 4.5), _text(LABELS + 9, 13, filled, "start")]
    if any(row.beside is not None for row in rows):
        parts += [_dot("h", LABELS + 150, 9, 4.5), _text(LABELS + 159, 13, hollow, "start")]
    for number, row in enumerate(rows):
        y = 38 + ROW * number
        parts.append(_text(LABELS - 10, y + 4, row.label, "end"))
        if row.interval:
            parts.append(_line("i", place(row.interval[0]), place(row.interval[1]), y, y))
        if row.beside is not None:
            parts.append(_dot("h", place(row.beside), y, 5.5))
        parts.append(_dot("s1", place(row.value), y, 4.5))
    return _svg(width, height, title, parts)


def _svg(width: int, height: int, title: str, parts: Sequence[Html]) -> Html:
    return Html.fill(
        '<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{title}">{parts}</svg>',
        width=width,
        height=height,
        title=title,
        parts=Html.join(parts),
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "l") -> Html:
    return Html.fill(
        '<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>',
        style=style,
        x=round(x, 1),
        y=round(y, 1),
        anchor=anchor,
        text=text,
    )


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> Html:
    return Html.fill(
        '<line class="{style}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>',
        style=style,
        x1=x1,
        x2=x2,
        y1=y1,
        y2=y2,
    )


def _dot(style: str, x: float, y: float, radius: float) -> Html:
    return Html.fill(
        '<circle class="{style}" cx="{x}" cy="{y}" r="{radius}"/>', style=style, x=x, y=y, radius=radius
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return max(low - room, 0.0) if low >= 0 else low - room, high + room
