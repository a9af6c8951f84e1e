from __future__ import annotations

import base64
import hashlib
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main, parse_config, run_bounded, stage_command
from benchmarks.gpu.cards import groups
from benchmarks.gpu.results import NAME, Results
from benchmarks.gpu.scale import FULL, TINY
from benchmarks.gpu.stage import measure_all
from benchmarks.gpu.stage import parse_config as parse_stage
from benchmarks.gpu.stages import STAGES, Stage
from benchmarks.gpu.tables import tables
from benchmarks.gpu.update import merged
from benchmarks.gpu.wheels import check_size, is_needed, repack, requirements
from benchmarks.gpu.work import Measurement, Work
from benchmarks.memory.trials import RECOMMENDED

ROOT = Path(__file__).parents[2]


class Tried:
    """A stage of which the second measurement fails, and the third needs a package that nobody has.

    Attributes:
        asked: settings in the order in which they were measured.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []

    def measurements(self, work: Work) -> Iterator[Measurement]:
        for number in range(4):
            yield Measurement({"number": number, "pair": (1, 2)}, lambda number=number: self.measure(number))

    def measure(self, number: int) -> dict[str, Any]:
        self.asked.append(number)
        if number == 1:
            raise ValueError("too\nlarge")
        if number == 2:
            import no_such_package  # noqa: F401
        if number == 3:
            raise SystemExit(1)
        return {"squared": number**2}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path, tmp_path / "scratch", TINY)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / NAME)


def test_what_fails_says_so_and_does_not_stop_the_rest(work: Work, results: Results) -> None:
    tried = Tried()
    assert measure_all("squares", Stage(1, tried.measurements), work, results) == 3
    assert tried.asked == [0, 1, 2, 3]
    made, *failed = results.lines()
    assert made["figures"] == {"squared": 0} and made["stage"] == "squares" and made["card"]
    assert made["settings"] == {"number": 0, "pair": [1, 2]} and "torch" in made["versions"]
    assert [line["failed"] for line in failed] == [
        "ValueError: too large",
        "no_such_package is not installed",
        "SystemExit: 1",
    ]


def test_what_was_measured_is_not_measured_again_but_under_another_label(
    work: Work, results: Results
) -> None:
    tried = Tried()
    stage = Stage(1, tried.measurements)
    measure_all("squares", stage, work, results)
    tried.asked.clear()
    measure_all("squares", stage, work, results)
    assert tried.asked == [1, 2, 3]
    assert (
        len(stage.pending("squares", work, results)) == 3 and len(stage.pending("other", work, results)) == 4
    )
    tuned = Results(results.path, "tuned")
    assert not tuned.has("squares", {"number": 0, "pair": (1, 2)})
    tuned.add("squares", {"number": 0, "pair": (1, 2)}, {"squared": 0}, card="none")
    assert tuned.has("squares", {"number": 0, "pair": (1, 2)}) and tuned.lines()[-1]["label"] == "tuned"


def test_a_program_is_ended_at_its_bound_with_all_that_it_started(tmp_path: Path) -> None:
    """The grandchild would write the file after a second."""
    late = tmp_path / "late"
    child = f"import time; time.sleep(1.5); open({str(late)!r}, 'w')"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    with (tmp_path / "log").open("wb") as log:
        why = run_bounded([sys.executable, "-c", code], 0.7, log)
        assert "0.7" not in why and "seconds" in why
        time.sleep(1.5)
        assert not late.exists() and (tmp_path / "log").read_text() == "begun\n"
        assert run_bounded([sys.executable, "-c", "raise SystemExit(3)"], 10, log) == ""
        died = run_bounded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 10, log)
    assert "signal 9" in died


def test_a_call_whose_time_is_up_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(parse_config(["--output_dir", str(tmp_path / "out"), "--seconds", "1e-9"]))
    assert len(capsys.readouterr().out.splitlines()) == len(STAGES)
    assert not (tmp_path / "out" / NAME).exists()


def test_a_stage_is_told_what_the_call_was_told(tmp_path: Path) -> None:
    given = ["--output_dir", str(tmp_path), "--label", "-- tuned", "--tiny"]
    config = parse_config([*given[:2], f"--label={given[3]}", "--tiny"])
    command = stage_command("speed", config, tmp_path / "scratch")
    stage = parse_stage(command[command.index("benchmarks.gpu.stage") + 1 :])
    assert (stage.stage, stage.output_dir, stage.label, stage.tiny) == ("speed", tmp_path, "-- tuned", True)
    assert stage.scratch == tmp_path / "scratch"


def test_every_recommended_card_is_tried_the_smallest_first() -> None:
    found = groups()
    assert list(found)[:2] == ["sd15", "sdxl"] and set(found) <= set(STAGES)
    for name, trials in found.items():
        caps = [cap for _, cap, _ in trials]
        quantised = {flag for _, _, flags in trials for flag in flags if flag.startswith("--load_in_")}
        assert caps == sorted(caps) and len(quantised) <= 1 and {base for base, *_ in trials} == {name[:4]}
        assert len(trials) <= FULL.cards
    tried = [trial for trials in found.values() for trial in trials]
    assert all(trial in tried for trial in RECOMMENDED if trial[0] in ("sd15", "sdxl") and trial[1] <= 24)


def test_settings_name_a_measurement_within_its_stage(tmp_path: Path) -> None:
    for scale in (FULL, TINY):
        work = Work(tmp_path, tmp_path, scale)
        for name, stage in STAGES.items():
            settings = [one.settings for one in stage.measurements(work)]
            assert settings and all(settings.count(one) == 1 for one in settings), name


def test_spans_that_touch_are_one() -> None:
    assert merged([(5, 9), (0, 2), (1, 3), (3, 4), (6, 7)]) == [(0, 4), (5, 9)]


def make_wheel(path: Path) -> dict[str, bytes]:
    """A wheel with two libraries of which one is not needed; what it holds."""
    held = {
        "bitsandbytes/__init__.py": b"x = 1\n",
        "bitsandbytes/libbitsandbytes_cpu.so": b"cpu" * 100,
        "bitsandbytes/libbitsandbytes_cuda118.so": bytes(range(256)) * 100,
        "bitsandbytes-1.dist-info/METADATA": b"Name: bitsandbytes\nVersion: 1\n",
        "bitsandbytes-1.dist-info/RECORD": b"wrong,,\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in held.items():
            wheel.writestr(name, content)
    return held


def test_a_wheel_is_repacked_with_the_record_of_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    held = make_wheel(path)
    before = path.stat().st_size
    repack(path, is_needed)
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        left = {name: wheel.read(name) for name in wheel.namelist()}
    assert set(held) - set(left) == {"bitsandbytes/libbitsandbytes_cuda118.so"}
    record = left.pop("bitsandbytes-1.dist-info/RECORD").decode().splitlines()
    assert left.items() <= held.items() and path.stat().st_size < before / 2
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        for name, content in left.items()
    }
    expected = [f"{name},sha256={digests[name]},{len(content)}" for name, content in left.items()]
    assert record == [*expected, "bitsandbytes-1.dist-info/RECORD,,"]


def test_libraries_of_other_devices_are_left_out() -> None:
    libraries = [
        f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda130", "cuda132", "rocm70")
    ]
    assert [is_needed(name) for name in libraries] == [True, True, False, False]
    assert is_needed("bitsandbytes/cextension.py")


def test_wheels_are_of_the_versions_that_the_project_is_tested_with() -> None:
    text = (ROOT / "constraints.txt").read_text()
    wanted = requirements(text)
    assert all("==" in one for one in wanted) and {one for one in wanted if "diffusers" in one} <= set(
        text.splitlines()
    )
    with pytest.raises(ValueError, match="ftfy"):
        requirements(text.replace("ftfy==", "#"))


def test_what_travels_is_no_larger_than_it_may_be() -> None:
    assert "largest: b 2.0" in check_size({"a": 2**20, "b": 2 * 2**20}, limit=3)
    with pytest.raises(ValueError, match=r"b 2\.0"):
        check_size({"a": 2**20, "b": 2 * 2**20}, limit=2.9)


def test_tables_keep_cards_and_labels_apart_and_say_what_is_missing(results: Results) -> None:
    figures = {"seconds": 2.0, "rollout_share": 0.25, "update_share": 0.5, "overhead": 0.125}
    settings = {"batch": 8, "steps": 2, "flags": ["--channels_last"]}
    results.add("speed", settings, figures, card="a card")
    tuned = Results(results.path, "tuned")
    tuned.add("speed", settings, figures | {"allocated_gb": 3.21}, card="a card")
    tuned.add_failure("graphs", {}, "was ended after 150 seconds")
    text = tables(results.lines())
    assert "## Speed, a card\n" in text and "## Speed, a card, tuned\n" in text
    assert "| 8 | 2 | `--channels_last` | 2.00 | 3.2 | 25 % | 50 % | 12 % |" in text
    assert "| graphs | `{}` | was ended after 150 seconds |" in text
