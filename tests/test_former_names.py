"""Commands that have another name now go on working, and say it."""

from __future__ import annotations

import pytest
from run_as_main import run_as_main

NAMES = {
    "reward.spec": "reward.concept",
    "reward.evaluate": "evaluation.predictor",
    "canvas.build": "benchmarks.worlds.canvas",
    "benchmarks.photos.build": "benchmarks.worlds.photos",
}


@pytest.mark.parametrize("former", NAMES)
def test_a_former_name_runs_the_command_and_says_the_new_one(
    former: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = run_as_main(former, "--help")
    assert code == 0 and NAMES[former] in capsys.readouterr().err and f"python -m {NAMES[former]}" in shown
