"""Commands that have another name now go on working, and say it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {
    "reward.spec": "reward.concept",
    "reward.evaluate": "evaluation.predictor",
    "canvas.build": "benchmarks.worlds.canvas",
    "benchmarks.photos.build": "benchmarks.worlds.photos",
}


@pytest.mark.parametrize("former", NAMES)
def test_a_former_name_runs_the_command_and_says_the_new_one(former: str) -> None:
    line = [sys.executable, "-m", former, "--help"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert NAMES[former] in run.stderr and f"python -m {NAMES[former]}" in run.stdout
