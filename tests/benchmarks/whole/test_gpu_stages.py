from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.__main__ import main, parse_config
from benchmarks.gpu.results import NAME, Results
from benchmarks.gpu.scale import TINY
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.tables import tables
from benchmarks.gpu.update import NAME as TRACE

ALL = os.environ.get("REHEARSAL") == "full"
CHOSEN = tuple(STAGES) if ALL else ("speed", "peer", "update")
"""All of them take a quarter of an hour on a CPU: quantised layers are slow there."""


def test_stages_run_at_tiny_size_and_none_runs_twice(tmp_path: Path) -> None:
    """The code that runs on a GPU, on whatever there is."""
    out = tmp_path / "out"
    given = ["--output_dir", str(out), "--scratch", str(tmp_path / "scratch"), "--tiny", "--seconds", "3000"]
    main(parse_config([*given, "--stages", *CHOSEN]))
    results = Results(out / NAME)
    lines = results.lines()
    failed = [line for line in lines if "failed" in line]
    if find_spec("trl") is None:
        assert [(line["stage"], line["failed"]) for line in failed] == [("peer", "trl is not installed")]
    else:
        assert not failed
    measured = [line for line in lines if "figures" in line]
    assert {line["stage"] for line in measured} == set(CHOSEN)
    for line in measured:
        figures = line["figures"]
        if line["settings"].get("run") == "demo":
            assert figures["training"]["first_ratio_deviation"] == 0
        if line["stage"] == "speed":
            assert 0 < figures["overhead"] < 1 and figures["seconds"] > 0
        if "cap_gb" in line["settings"]:
            assert figures["fits"]
        if line["stage"] == "update":
            assert 0 < figures["busy"] <= 1 and figures["kernels"]
    assert {path.name for path in out.iterdir()} == {NAME, "log.txt", TRACE}
    titles = [row for row in tables(lines, TINY).splitlines() if row.startswith("## ")]
    assert len(titles) == (6 if ALL else len(CHOSEN)) + bool(failed)

    main(parse_config([*given, "--stages", *(name for name in CHOSEN if name != "peer")]))
    assert results.lines() == lines
