from __future__ import annotations

import json
import math
from pathlib import Path

from training.diagnostics import Diagnostics


def read(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_iteration_is_a_line_of_json(tmp_path: Path) -> None:
    diagnostics = Diagnostics(tmp_path / "d.jsonl")
    diagnostics.begin(0)
    diagnostics.write(0, {"a": 1.5, "b": math.nan})
    diagnostics.write(1, {"a": math.inf})
    assert read(tmp_path / "d.jsonl") == [{"iteration": 0, "a": 1.5, "b": None}, {"iteration": 1, "a": None}]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    diagnostics = Diagnostics(path)
    diagnostics.begin(0)
    for i in range(4):
        diagnostics.write(i, {"a": float(i)})
    with path.open("a") as file:
        file.write('{"iteration": 4, "a": 0.')  # killed here
    diagnostics.begin(2)
    diagnostics.write(2, {"a": 9.0})
    assert [line["iteration"] for line in read(path)] == [0, 1, 2] and read(path)[-1]["a"] == 9.0


def test_a_new_run_does_not_go_on_with_an_old_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"iteration": 0}\n')
    Diagnostics(tmp_path / "d.jsonl").begin(0)
    assert (tmp_path / "d.jsonl").read_text() == ""
