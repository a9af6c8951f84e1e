"""A run that several processes share is the run of one; what they share is gathered in order, and none waits for one that is gone."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from two_processes import run_in_two_processes, start_two_processes

import train_unlearn_lora as script
from policy.processes import all_rows, anywhere, keep_in_step, own_rows, processes, sum_gradients

Arguments = Callable[..., argparse.Namespace]
ADAPTER = "pytorch_lora_weights.safetensors"
SEVERAL = {
    "cooldown_updates": 1,
    "images_per_iteration": 5,
    "retain_batch_size": 3,
    "retain_rollouts": 7,
    "warmup_rollouts": 9,
    "train_batch_size": 2,
}
"""Numbers that two processes cannot share evenly."""


def in_two_processes(args: argparse.Namespace) -> None:
    run_in_two_processes(lambda _: script.main(args), [])


def diagnostics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "diagnostics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """To the rounding of sums: every figure of every iteration, the costs, what was evaluated, and all weights.

    Of weights nearly every element, and all by their norm: Adam takes a step of full size where a gradient is hardly more than its
    rounding, and the worst text near a prompt is found by the direction of a gradient, however small.
    """
    for alone, shared in zip(diagnostics(one), diagnostics(two), strict=True):
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name
    results = [json.loads((path / "results.json").read_text()) for path in (one, two)]
    for name in ("iterations", "images", "unet_samples", "stopped_by", "first_ratio_deviation"):
        assert results[0]["training"][name] == results[1]["training"][name]
    for name in ("base", "images_per_side", "changed_images"):
        assert results[0].get(name) == results[1].get(name)
    for path in sorted(one.rglob("*.safetensors")):
        alone, shared = load_file(path), load_file(two / path.relative_to(one))
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            close = torch.isclose(value.float(), shared[name].float(), rtol=1e-3, atol=1e-4)
            assert close.float().mean() > 0.95, f"{path.name}: {name}"
            difference = torch.linalg.vector_norm(shared[name].float() - value.float())
            assert difference <= 1e-4 + 1e-2 * torch.linalg.vector_norm(value.float()), f"{path.name}: {name}"


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation_seeds": [0, 1]},
        {"gamma": 0.5, "replay_iterations": 1, "offload_trajectories": True},
        {"advantage": "gae", "inner_epochs": 2},
        {"advantage": "ddpo", "guidance_scale": 1.0},
    ],
    ids=["defaults", "critic and replay", "gae", "ddpo without guidance"],
)
def test_two_processes_train_the_adapter_that_one_trains(options: dict[str, Any], arguments: Arguments, tmp_path: Path) -> None:
    settings = SEVERAL | options | {"max_train_iterations": 3, "checkpointing_steps": 2}
    script.main(arguments(output_dir=tmp_path / "one", **settings))
    in_two_processes(arguments(output_dir=tmp_path / "two", **settings))
    moved = load_file(tmp_path / "one" / ADAPTER)
    assert any(value.abs().max() > 1e-3 for name, value in moved.items() if "lora_B" in name or "lora.up" in name)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    evaluated = "base" in json.loads((tmp_path / "two" / "results.json").read_text())
    assert evaluated == ("evaluation_seeds" in options)


def test_what_two_processes_began_one_ends(arguments: Arguments, tmp_path: Path) -> None:
    settings = SEVERAL | {"replay_iterations": 1, "checkpointing_steps": 1}
    in_two_processes(arguments(output_dir=tmp_path / "two", max_train_iterations=2, **settings))
    script.main(arguments(output_dir=tmp_path / "two", max_train_iterations=3, resume_from_checkpoint="latest", **settings))
    script.main(arguments(output_dir=tmp_path / "one", max_train_iterations=3, **settings))
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_waits_for_one_that_is_gone(
    rank: int, number: signal.Signals, arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed, the others end with an error; asked to end, all of them do after the iteration."""
    args = arguments(max_train_iterations=1000, checkpointing_steps=1)
    workers = start_two_processes(lambda _: script.main(args), [])
    log = tmp_path / "out" / "diagnostics.jsonl"
    while all(worker.is_alive() for worker in workers) and not (log.is_file() and log.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.kill(workers[rank].pid or 0, number)
    for worker in workers:
        worker.join(60)
    codes, said = [worker.exitcode for worker in workers], capfd.readouterr().err
    if number == signal.SIGTERM:
        assert codes == [128 + number] * 2 and "goes on" in said
    else:
        assert codes[rank] == -number and codes[1 - rank] == 1
        assert "another process of this run has ended" in said and "--resume_from_checkpoint latest" in said and "Traceback" not in said


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_a_model_is_not_shared_out(plugin: str, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(SystemExit) as caught:
        script.main(arguments())
    assert caught.value.code == 2 and "is not supported" in capsys.readouterr().err


def test_more_processes_than_work_are_refused(arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = arguments(images_per_iteration=1)
    workers = start_two_processes(lambda _: script.main(args), [])
    for worker in workers:
        worker.join(60)
    codes, said = [worker.exitcode for worker in workers], capfd.readouterr().err
    assert 2 in codes and 0 not in codes  # the other one may find the first gone before it can say it too
    assert "2 processes cannot share --images_per_iteration 1" in said and not (tmp_path / "out").exists()


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
        found |= {"gradient": weight.weight.grad, "none": idle.grad, "anywhere": torch.tensor([anywhere(rank == 1), anywhere(False)])}
        keep_in_step(weight)
        save_file(found | {"weight": weight.weight.data.clone()}, tmp_path / f"{rank}.safetensors")

    run_in_two_processes(work, [])
    for found in (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)):
        assert all(torch.equal(found[f"rows{count}"], torch.arange(count)[:, None] * torch.ones(3)) for count in (2, 3, 8))
        assert found["gradient"].tolist() == [[3.0, 3.0]] and found["none"].tolist() == [0.0, 0.0]
        assert found["anywhere"].tolist() == [True, False] and found["weight"].tolist() == [[1.0, 1.0]]


def test_one_process_has_all_rows_and_copies_none() -> None:
    rows = torch.rand(5, 2)
    assert own_rows(5) == slice(0, 5) and all_rows(rows, 5) is rows and anywhere(True) and not anywhere(False)
