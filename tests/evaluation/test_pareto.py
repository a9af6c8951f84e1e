"""The curve of the price has a panel for each figure that is known, and labels that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.pareto import _places, pareto


def side(scale: float, ua: float, ira: float, cra: float | None) -> dict[str, Any]:
    around = {
        name: None if value is None else [max(0, value - 5), min(100, value + 5)]
        for name, value in (("UA", ua), ("IRA", ira), ("CRA", cra))
    }
    return {"scale": scale, "UA": ua, "IRA": ira, "CRA": cra, "ci95": around}


def test_a_panel_for_each_figure(tmp_path: Path) -> None:
    sizes = {}
    for name, cra in {"both": 98.0, "one": None}.items():
        pareto(
            [side(1.5, 100, 40, cra), side(0, 0, 97, cra), side(1, 99, 96, cra)],
            tmp_path / name,
            "Erased: $x$",
        )
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            sizes[name] = picture.width
    assert sizes["both"] > 1.5 * sizes["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "one"]


def test_points_on_one_another_share_a_label() -> None:
    points = [
        side(0, 0, 97, None),
        side(0.75, 100, 96.8, None),
        side(1, 100, 97, None),
        side(1.5, 100, 60, None),
    ]
    assert _places(points, "IRA", 1.0) == [((0, 97), [0]), ((100, 96.8), [0.75, 1]), ((100, 60), [1.5])]
