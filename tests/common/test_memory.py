from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from common.memory import advised, flags_to_try, out_of_memory, peak_memory_mb
from train_unlearn_lora import parse_args


def hold_and_let_go(found: Connection) -> None:
    torch.cuda.is_available = lambda: False
    before = peak_memory_mb()
    held = torch.ones(75_000_000)
    del held
    found.send((before, peak_memory_mb()))


def test_the_peak_counts_what_was_held_and_is_held_no_more() -> None:
    """In a process of its own: this one may have held more before. What is forked begins with a peak of
    what it holds."""
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=hold_and_let_go, args=(theirs,))
    process.start()
    assert ours.poll(60)
    before, after = ours.recv()
    process.join()
    assert before > 50 and 290 < after - before < 400


def test_the_flags_to_try_are_those_not_given_yet_cheapest_first() -> None:
    loading = flags_to_try(parse_args(["--concept", "cat"]), on_gpu=True)
    assert loading[0] == "--mixed_precision bf16" and not any("batch" in flag for flag in loading)
    args = parse_args(["--concept", "cat", "--train_batch_size", "64"])
    first = ["--mixed_precision bf16", "--train_batch_size 32", "--gradient_checkpointing"]
    assert flags_to_try(args, on_gpu=True) == [
        *first,
        "--offload_models",
        "--offload_trajectories",
        "--load_in_4bit",
    ]
    assert flags_to_try(args, on_gpu=False) == [
        *first,
        "--load_in_4bit",
    ]  # what lies in main memory saves none there
    args = parse_args(
        [
            "--mixed_precision",
            "bf16",
            "--train_batch_size",
            "2",
            "--gradient_checkpointing",
            "--offload_models",
            "--load_in_8bit",
        ]
    )
    assert flags_to_try(args, on_gpu=True) == [
        "--offload_trajectories",
        "--train_batch_size 1",
        "--load_in_4bit in place of --load_in_8bit",
    ]


def test_following_the_advice_to_the_end_ends_with_a_larger_device() -> None:
    line, said = ["--concept", "cat", "--train_batch_size", "64"], []
    while flags := flags_to_try(args := parse_args(line), on_gpu=True):
        said.append(flags[0])
        if "in place of" not in flags[0]:
            line += flags[0].split()
    assert (
        said[-1] == "--load_in_4bit"
        and said.count("--gradient_checkpointing") == 1
        and args.train_batch_size == 1
    )
    assert "take a larger device" in out_of_memory(flags, on_gpu=True) and "GPU memory" in out_of_memory(
        flags, on_gpu=True
    )


def test_a_command_that_draws_names_the_sizes_it_can_halve(capsys: pytest.CaptureFixture[str]) -> None:
    @advised("eval_batch_size", "train_batch_size")
    def command(args: argparse.Namespace) -> None:
        torch.empty(10**15)

    on = "GPU memory" if torch.cuda.is_available() else "memory"
    for given, advice in [
        (
            {"mixed_precision": "no", "eval_batch_size": 9, "train_batch_size": 8},
            "--mixed_precision bf16, --eval_batch_size 4, --train_batch_size 4",
        ),
        ({"mixed_precision": "bf16", "eval_batch_size": None, "train_batch_size": 2}, "--train_batch_size 1"),
        ({"eval_batch_size": 1, "train_batch_size": 1}, "take a larger device"),
    ]:
        with pytest.raises(SystemExit) as caught:
            command(argparse.Namespace(**given))
        error = capsys.readouterr().err
        assert (
            caught.value.code == 1
            and error.startswith(f"error: there is not enough {on}; ")
            and advice in error
        )


def test_what_is_no_lack_of_memory_goes_on() -> None:
    @advised("eval_batch_size")
    def command(args: argparse.Namespace) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command(argparse.Namespace(eval_batch_size=1))
