"""The before/after picture is written, stays small, and takes any prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.grid import Pair, before_after


def picture(seed: int, size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "count"), [(16, 1), (32, 9), (256, 12)])
def test_size_and_content(size: int, count: int, tmp_path: Path) -> None:
    pairs = [
        Pair(
            f"prompt {i} with <b>$odd_{i}$</b> words",
            picture(2 * i, size),
            picture(2 * i + 1, size),
            i % 2 == 0,
        )
        for i in range(count)
    ]
    path = tmp_path / "new" / "grid.png"
    before_after(pairs, path, "Erased: $x$\nUA 1 → 99")
    assert path.stat().st_size < 500_000
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.std() > 10
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image"):
        before_after([], tmp_path / "grid.png", "")
