"""Texts of users in pictures, in scripts that the usual font lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from evaluation.fonts import USUAL, columns, families_for, visible
from evaluation.grid import Pair, before_after


def pairs(*prompts: str) -> list[Pair]:
    picture = Image.new("RGB", (8, 8))
    return [Pair(prompt, picture, picture, forget=n == 0) for n, prompt in enumerate(prompts)]


@pytest.fixture
def without_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that matplotlib ships, whatever this machine has."""
    shipped = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)


@pytest.fixture
def with_cats(tmp_path: Path, without_other_fonts: None) -> Iterator[str]:
    """A font whose only character is the ideograph for a cat."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "cat"])
    made.setupCharacterMap({ord("猫"): "cat"})
    made.setupGlyf({".notdef": pen.glyph(), "cat": pen.glyph()})
    made.setupHorizontalMetrics({".notdef": (800, 0), "cat": (800, 0)})
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Cats Only", "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(tmp_path / "cats.ttf")
    fontManager.addfont(tmp_path / "cats.ttf")
    yield "Cats Only"


@pytest.mark.parametrize("text", ["a cat", "Кошка", "γάτα", "قطة", "Café"])
@pytest.mark.usefixtures("without_other_fonts")
def test_the_usual_font_draws_these_alone(text: str) -> None:
    assert families_for(text) == ([USUAL], set())


@pytest.mark.usefixtures("without_other_fonts")
def test_what_no_font_has_is_named_and_written_beside_the_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert families_for("一只猫🦄\u200d\ufe0f of mine")[1] == set("一只猫🦄")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before_after(pairs("一只猫", "a dog"), tmp_path / "grid.png", "Erasing 猫")
    assert (tmp_path / "grid.txt").read_text() == "Erasing 猫\n\n1: 一只猫\n2: a dog\n"
    assert "Noto" in caplog.text and Image.open(tmp_path / "grid.png").width > 100


def test_an_installed_font_is_used(with_cats: str, tmp_path: Path) -> None:
    assert families_for("a 猫") == ([USUAL, with_cats], set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before_after(pairs("a 猫", "a dog"), tmp_path / "grid.png", "Erasing 猫")
    assert [path.name for path in tmp_path.glob("grid*")] == ["grid.png"]


def test_widths_and_what_is_not_seen() -> None:
    assert (columns("cat"), columns("猫"), columns("한국 cat")) == (3, 2, 8)
    assert visible("a\u200db\ufe0fc\u202ed") == "abcd"
