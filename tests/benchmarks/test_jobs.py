from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.jobs import Job, run_job, run_jobs, run_script, slug, split_arguments

WRITE = "import json, sys; json.dump({'name': sys.argv[2]}, open(sys.argv[1], 'w')); print('said')"


def job(directory: Path, name: str, code: str = WRITE) -> Job:
    output = directory / f"{name}.json"
    return Job(["-c", code, str(output), name], output, output.with_suffix(".log"))


def test_results_come_in_the_order_of_the_jobs_and_are_kept(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"name": "from before"}))
    jobs = [job(tmp_path, name) for name in "abc"]
    assert run_jobs(jobs, at_a_time=2) == [{"name": name} for name in ("a", "from before", "c")]
    assert jobs[0].log.read_text() == "said\n" and not jobs[1].log.exists()


def test_a_job_that_fails_names_its_log(tmp_path: Path) -> None:
    failing = job(tmp_path, "a", "print('why'); raise SystemExit(1 + 2)")
    with pytest.raises(RuntimeError, match=r" 3\b.*a\.log"):
        run_job(failing)
    assert failing.log.read_text() == "why\n"


def test_the_script_is_run_with_its_own_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv
    with pytest.raises(SystemExit) as ended:
        run_script(["--concept", "cat", "--rank", "none"])
    assert ended.value.code == 2 and "--rank" in capsys.readouterr().err and sys.argv is before


def test_what_stands_after_two_dashes_is_passed_on() -> None:
    assert split_arguments(["--jobs", "2", "--", "--rank", "4"]) == (["--jobs", "2"], ["--rank", "4"])
    assert split_arguments(["--jobs", "2"]) == (["--jobs", "2"], [])


def test_names_of_files() -> None:
    assert slug("Van Gogh style + cat") == "van-gogh-style-cat"
    assert slug("plain critic-cat-0-0.005", keep=".-") == "plain-critic-cat-0-0.005"
