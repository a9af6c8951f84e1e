from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import MISSING, markdown, mean, mean_interval, number, sections, write_json, write_text


def test_a_table_has_a_header_a_line_and_rows_of_as_many_cells() -> None:
    lines = markdown(["name", "UA"], [["cat", "98.0"], ["dog", ""]]).splitlines()
    assert lines == ["| name | UA |", "|---|---|", "| cat | 98.0 |", "| dog |  |"]
    with pytest.raises(AssertionError):
        markdown(["name", "UA"], [["cat"]])
    assert sections({"A": "a", "B": "b"}) == "## A\n\na\n\n## B\n\nb"


def test_what_is_not_known_is_shown_as_missing_and_left_out_of_means() -> None:
    assert number(None) == MISSING and number(12.345, 2) == "12.35" and number(0.0, 0) == "0"
    assert mean([1.0, None, 3.0]) == 2.0 and mean([None]) is None and mean([]) is None


def test_a_mean_has_its_interval_beside_it() -> None:
    assert mean_interval({"mean": 98.0, "ci95": [91.62, 100.0]}) == "98.0 [91.6, 100.0]"
    assert mean_interval({"mean": 2.0, "ci95": [-1.0, 5.0]}, 2, least=0.0) == "2.00 [0.00, 5.00]"
    assert mean_interval({"mean": -2.0, "ci95": [-4.0, 0.0]}, 0) == "-2 [-4, 0]"
    assert mean_interval({"mean": 2.0, "ci95": None}) == "2.0"
    assert mean_interval({"mean": None, "ci95": None}) == MISSING


def test_files_are_complete_and_end_in_a_line_break(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "table.md", "a\nb\n")
    write_json(tmp_path / "new" / "table.json", {"Ä": (1, None)})
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8") == "a\nb\n"
    text = (tmp_path / "new" / "table.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"Ä": [1, None]} and "Ä" in text and text.endswith("}\n")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"table.md", "table.json"}
