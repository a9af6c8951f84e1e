from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.lock import exclusive_run

HOLDER = "import sys, pathlib, time\nfrom training.lock import exclusive_run\nwith exclusive_run(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match="--output_dir"), exclusive_run(tmp_path / "out"):
                pass
        finally:
            holder.kill()
    with exclusive_run(tmp_path / "out"):
        pass


def test_it_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive_run(tmp_path):
        raise RuntimeError
    with exclusive_run(tmp_path):
        pass
