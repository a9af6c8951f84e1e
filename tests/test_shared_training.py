"""A run that several processes share is the run of one; what they share is gathered in order, and none
waits for one that is gone."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import Finished
from rounding import ADAPTER, SMOOTH, assert_as_near_as_a_bit, nudged
from safetensors.torch import load_file, save_file
from two_processes import run_in_two_processes, start_two_processes

import train_unlearn_lora as script
from common.processes import all_rows, anywhere, keep_in_step, own_rows, processes, sum_gradients
from training.config import RunConfig

Arguments = Callable[..., RunConfig]
Finish = Callable[..., Finished]
SEVERAL = {
    "cooldown_updates": 1,
    "images_per_iteration": 5,
    "retain_batch_size": 3,
    "retain_rollouts": 7,
    "warmup_rollouts": 9,
    "train_batch_size": 2,
}
"""Numbers that two processes cannot share evenly."""


def in_two_processes(config: RunConfig) -> None:
    run_in_two_processes(lambda _: script.main(config), [])


def diagnostics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "diagnostics.jsonl").read_text().splitlines()]


def assert_same_counts(one: Path, two: Path) -> None:
    """What is counted and not computed: iterations, images, passes of the UNet, and the first ratio, which
    is 1."""
    results = [json.loads((path / "results.json").read_text()) for path in (one, two)]
    for name in ("iterations", "images", "unet_samples", "stopped_by", "first_ratio_deviation"):
        assert results[0]["training"][name] == results[1]["training"][name]
    assert results[0].get("images_per_side") == results[1].get("images_per_side")


OBJECTIVES = {
    "defaults": {"evaluation_seeds": 0},
    "critic and replay": {"gamma": 0.5, "replay_iterations": 1, "offload_trajectories": True},
    "gae without guidance": {"advantage": "gae", "inner_epochs": 2, "guidance_scale": 1.0},
}


EVEN = {
    "images_per_iteration": 4,
    "retain_batch_size": 4,
    "retain_rollouts": 8,
    "warmup_rollouts": 8,
    "train_batch_size": 2,
}
"""Numbers of which two processes pass the same batches through the UNet as one does."""


def test_equal_shares_are_rolled_out_to_the_same_bits(
    finished: Finish, arguments: Arguments, tmp_path: Path
) -> None:
    """The UNet sees the same batches, so that nothing is rounded differently until gradients are added up."""
    settings = EVEN | {
        "max_train_iterations": 1,
        "checkpointing_steps": 1,
        "replay_iterations": 1,
        "gamma": 0.5,
    }
    one = finished(**settings).directory
    in_two_processes(arguments(**settings))
    alone, shared = (
        load_file(directory / "checkpoint-1" / "state.safetensors") for directory in (one, tmp_path / "out")
    )
    rolled_out = [name for name in alone if name.startswith("replay/") and name.split(".")[-1] in ROLLED_OUT]
    assert len(rolled_out) == len(ROLLED_OUT)
    assert all(torch.equal(alone[name], shared[name]) for name in rolled_out)


ROLLED_OUT = ("latents", "means", "log_probs", "prompt_ids", "anchor_ids")


@pytest.fixture(scope="module")
def nudged_base(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nudged(tiny_pipeline_dir, tmp_path_factory.mktemp("nudged") / "base")


TWO = SEVERAL | SMOOTH | {"max_train_iterations": 2, "checkpointing_steps": 1, "num_inference_steps": 3}
"""Iterations in which learning has amplified what differs in last bits."""


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_two_processes_train_the_adapter_that_one_trains(
    options: dict[str, Any], finished: Finish, arguments: Arguments, nudged_base: Path, tmp_path: Path
) -> None:
    """The same metrics before anything is learnt; then learning amplifies rounding, as it does where the
    base differs in last bits."""
    one = finished(**TWO, **options).directory
    in_two_processes(arguments(**TWO, **options))
    moved = load_file(one / ADAPTER)
    assert any(
        value.abs().max() > 1e-3 for name, value in moved.items() if "lora_B" in name or "lora.up" in name
    )
    alone, shared = diagnostics(one), diagnostics(tmp_path / "out")
    assert [entry.keys() for entry in alone] == [entry.keys() for entry in shared]
    for name in MEASURED:
        assert shared[0][name] == pytest.approx(alone[0][name], rel=1e-3, abs=1e-4), name
    assert_as_near_as_a_bit(tmp_path / "out", one, bit_of(finished, nudged_base, options))
    assert_same_counts(one, tmp_path / "out")
    evaluated = "base" in json.loads((tmp_path / "out" / "results.json").read_text())
    assert evaluated == ("evaluation_seeds" in options)


def bit_of(finished: Finish, nudged_base: Path, options: dict[str, Any]) -> Path:
    """The same run on a base that differs in last bits; it need not be evaluated."""
    settings = TWO | options | {"evaluation_seeds": None, "pretrained_model_name_or_path": nudged_base}
    return finished(**settings).directory


MEASURED = (
    "forget_reward",
    "noisy_reward",
    "shortfall",
    "replacement",
    "contrast",
    "retain_reward",
    "retain_drop",
)
"""Metrics of an iteration's images, which are drawn before anything is learnt from them."""


def test_what_two_processes_began_one_ends(
    finished: Finish, arguments: Arguments, nudged_base: Path, tmp_path: Path
) -> None:
    options = OBJECTIVES["critic and replay"]
    in_two_processes(arguments(**TWO | options | {"max_train_iterations": 1}))
    script.main(arguments(resume_from_checkpoint="latest", **TWO, **options))
    one, bit = finished(**TWO, **options).directory, bit_of(finished, nudged_base, options)
    assert_as_near_as_a_bit(tmp_path / "out", one, bit)
    assert_same_counts(one, tmp_path / "out")


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)])
def test_no_process_waits_for_one_that_is_gone(
    rank: int, number: signal.Signals, arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed, the others end with an error; asked to end, all of them do after the iteration."""
    config = arguments(max_train_iterations=1000, checkpointing_steps=1)
    workers = start_two_processes(lambda _: script.main(config), [])
    log = tmp_path / "out" / "diagnostics.jsonl"
    while all(worker.is_alive() for worker in workers) and not (
        log.is_file() and log.read_text().count("\n") >= 2
    ):
        time.sleep(0.01)
    os.kill(workers[rank].pid or 0, number)
    for worker in workers:
        worker.join(60)
    codes, said = [worker.exitcode for worker in workers], capfd.readouterr().err
    if number == signal.SIGTERM:
        assert codes == [128 + number] * 2 and "--resume_from_checkpoint latest" in said
    else:
        assert codes[rank] == -number and codes[1 - rank] == 1
        assert "--resume_from_checkpoint latest" in said and "Traceback" not in said


def test_two_processes_of_a_machine_say_everything_once(
    arguments: Arguments, capfd: pytest.CaptureFixture[str]
) -> None:
    config = arguments(max_train_iterations=1)

    def work(_: list[str]) -> None:
        logging.getLogger().handlers.clear()  # pytest's own, so that the script makes its own
        script.main(config)

    run_in_two_processes(work, [])
    logged = [line for line in capfd.readouterr().err.splitlines() if re.search(" - (INFO|WARNING) - ", line)]
    texts = [line.split(" - ", 1)[1] for line in logged]  # without the time of day
    assert len(texts) > 3 and sorted(texts) == sorted(set(texts))


def test_more_processes_than_work_are_refused(
    arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = arguments(images_per_iteration=1)
    workers = start_two_processes(lambda _: script.main(config), [])
    for worker in workers:
        worker.join(60)
    codes, said = [worker.exitcode for worker in workers], capfd.readouterr().err
    assert 2 in codes and 0 not in codes  # the other one may find the first gone before it can say it too
    assert "--images_per_iteration 1" in said and not (tmp_path / "out").exists()


def test_rows_gradients_and_weights_are_everyones(tmp_path: Path) -> None:
    def work(_: list[str]) -> None:
        rank = processes().process_index
        found: dict[str, torch.Tensor] = {}
        for count in (2, 3, 8):
            rows = torch.arange(count)[own_rows(count)]
            found[f"rows{count}"] = all_rows(rows[:, None] * torch.ones(3), count)
        weight = torch.nn.Linear(2, 1, bias=False)
        weight.weight.data.fill_(rank + 1)
        idle = torch.nn.Parameter(torch.zeros(2))
        weight.weight.grad = torch.full((1, 2), rank + 1.0)
        sum_gradients([weight.weight, idle])
        assert idle.grad is not None and weight.weight.grad is not None
        found |= {
            "gradient": weight.weight.grad,
            "none": idle.grad,
            "anywhere": torch.tensor([anywhere(rank == 1), anywhere(False)]),
        }
        keep_in_step(weight)
        save_file(found | {"weight": weight.weight.data.clone()}, tmp_path / f"{rank}.safetensors")

    run_in_two_processes(work, [])
    for found in (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)):
        assert all(
            torch.equal(found[f"rows{count}"], torch.arange(count)[:, None] * torch.ones(3))
            for count in (2, 3, 8)
        )
        assert found["gradient"].tolist() == [[3.0, 3.0]] and found["none"].tolist() == [0.0, 0.0]
        assert found["anywhere"].tolist() == [True, False] and found["weight"].tolist() == [[1.0, 1.0]]


def test_one_process_has_all_rows_and_copies_none() -> None:
    rows = torch.rand(5, 2)
    assert own_rows(5) == slice(0, 5) and all_rows(rows, 5) is rows and anywhere(True) and not anywhere(False)
