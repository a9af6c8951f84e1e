from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare.records import Records


def test_what_is_recorded_is_not_made_again(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, float]:
        made.append(1)
        return {"UA": 90.0}

    records = Records(tmp_path / "records", "a base")
    assert [records.of("ours-cat-0", make)["UA"] for _ in range(2)] == [90.0, 90.0]
    assert len(made) == 1 and records.path("ours-cat-0").is_file()


def test_a_record_of_another_base_is_refused(tmp_path: Path) -> None:
    Records(tmp_path, "a base").of("ours-cat-0", dict)
    with pytest.raises(ValueError, match=r"ours-cat-0\.json is of another base"):
        Records(tmp_path, "another").of("ours-cat-0", dict)


def test_a_run_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("why")

    records = Records(tmp_path, "a base")
    with pytest.raises(RuntimeError, match="why"):
        records.of("ours-cat-0", fail)
    assert not records.path("ours-cat-0").exists()
