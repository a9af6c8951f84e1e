from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from common.lock import exclusive


def hold(directory: Path, held: Connection) -> None:
    with exclusive(directory):
        held.send("held")
        time.sleep(600)


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")  # which imports nothing again
    ours, theirs = processes.Pipe()
    holder = processes.Process(target=hold, args=(tmp_path / "out", theirs))
    holder.start()
    try:
        assert ours.poll(60) and ours.recv() == "held"
        with pytest.raises(ValueError, match="--output_dir"), exclusive(tmp_path / "out"):
            pass
    finally:
        holder.kill()
        holder.join()
    with exclusive(tmp_path / "out"):
        pass


def test_it_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError
    with exclusive(tmp_path):
        pass
