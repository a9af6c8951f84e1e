"""Runs that are killed, interrupted or resumed wrongly, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import Finished
from killed import outcome
from safetensors.torch import load_file

import train_unlearn_lora as script
from common.checkpoints import list_checkpoints
from common.files import LOCK_NAME, UNFINISHED
from common.lock import exclusive
from training.config import RunConfig
from training.setup import prepare

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["one_thread", "train_unlearn_lora"])
ADAPTER = "pytorch_lora_weights.safetensors"
FEW = {"num_inference_steps": 3, "images_per_iteration": 3, "retain_rollouts": 3}
Arguments = Callable[..., RunConfig]
Finish = Callable[..., Finished]


def start(config: RunConfig) -> Any:
    process = PROCESSES.Process(target=script.main, args=(config,))
    process.start()
    return process


def run(config: RunConfig) -> None:
    process = start(config)
    process.join()
    assert process.exitcode == 0


def again(directory: Path) -> dict[str, Any]:
    """How to start once more in a directory that a run has died in."""
    return (
        {"resume_from_checkpoint": "latest"}
        if list_checkpoints(directory)
        else {"overwrite_output_dir": True}
    )


def await_iterations(count: int, directory: Path, process: Any) -> None:
    """Until so many iterations have been logged, or the process has ended."""
    diagnostics = directory / "diagnostics.jsonl"
    while process.is_alive() and not (diagnostics.is_file() and diagnostics.read_text().count("\n") >= count):
        time.sleep(0.01)


def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(
    arguments: Arguments, tmp_path: Path
) -> None:
    """At random moments, from the base's rollouts to the final files; `latest` goes on."""
    settings = {"max_train_iterations": 3, "checkpointing_steps": 1, "gamma": 0.5, "replay_iterations": 1}
    settings |= FEW
    run(arguments(output_dir=tmp_path / "whole", **settings))
    moments = random.Random(0)
    for done in range(3):
        process = start(arguments(**settings, **again(tmp_path / "out")))
        await_iterations(done, tmp_path / "out", process)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.join()
    run(arguments(**settings, **again(tmp_path / "out")))
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {name for name in left if name.startswith(UNFINISHED)} and left >= {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_its_iteration_and_can_go_on(
    number: signal.Signals, arguments: Arguments, tmp_path: Path
) -> None:
    process = start(arguments(max_train_iterations=1000, **FEW))
    await_iterations(1, tmp_path / "out", process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    (saved,) = list_checkpoints(tmp_path / "out")
    done = int(saved.name.removeprefix("checkpoint-"))
    run(arguments(max_train_iterations=done + 1, resume_from_checkpoint="latest", **FEW))
    run(arguments(output_dir=tmp_path / "whole", max_train_iterations=done + 1, **FEW))
    resumed, whole = (load_file(tmp_path / name / ADAPTER) for name in ("out", "whole"))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_two_runs_in_one_directory_are_refused(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(SystemExit) as caught:
        script.main(arguments())
    assert caught.value.code == 2 and "--output_dir" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("change", [{"concept": "Neon style"}, {"seed": 3}], ids=str)
def test_a_run_is_not_resumed_as_another(
    change: dict[str, Any],
    finished: Finish,
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = finished(max_train_iterations=1, checkpointing_steps=1)
    shutil.copytree(whole.directory, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(resume_from_checkpoint="latest", **change))
    assert caught.value.code == 2 and f"--{next(iter(change))}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_run_is_not_resumed_with_other_prompts_of_the_same_name(
    finished: Finish, arguments: Arguments, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a tree\na car\n")
    whole = finished(max_train_iterations=1, checkpointing_steps=1, retain_prompts=prompts)
    shutil.copytree(whole.directory, tmp_path / "out")
    go_on = arguments(resume_from_checkpoint="latest", retain_prompts=prompts)
    assert prepare(go_on).checkpoint is not None
    prompts.write_text("a tree\na dog\n")
    with pytest.raises(ValueError, match="--retain_prompts"):
        prepare(go_on)
