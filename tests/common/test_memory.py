from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pytest
import torch

from common.flags import flag
from common.memory import advised, advising, out_of_memory, peak_memory_mb


def hold_and_let_go(found: Connection) -> None:
    torch.cuda.is_available = lambda: False
    before = peak_memory_mb()
    held = torch.ones(75_000_000)
    del held
    found.send((before, peak_memory_mb()))


def test_the_peak_counts_what_was_held_and_is_held_no_more() -> None:
    """In a process of its own: this one may have held more before. A forked process begins with a peak of
    what it holds."""
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=hold_and_let_go, args=(theirs,))
    process.start()
    assert ours.poll(60)
    before, after = ours.recv()
    process.join()
    assert before > 50 and 290 < after - before < 400


@dataclass(frozen=True)
class Sizes:
    """What a command draws with."""

    eval_batch_size: int | None = flag(None, help="Images at a time.")
    train_batch_size: int = flag(1, help="Rows at a time.")


@dataclass(frozen=True)
class Precision:
    """In which precision."""

    mixed_precision: str | None = flag(None, help="Precision.")


@dataclass(frozen=True)
class Settings:
    """Both."""

    sizes: Sizes = Sizes()
    precision: Precision = Precision()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            Settings(Sizes(9, 8), Precision("no")),
            ["--mixed_precision bf16", "--eval_batch_size 4", "--train_batch_size 4"],
        ),
        (Settings(Sizes(None, 2), Precision(None)), ["--mixed_precision bf16", "--train_batch_size 1"]),
        (Settings(Sizes(None, 2), Precision("bf16")), ["--train_batch_size 1"]),
        (Sizes(2, 1), ["--eval_batch_size 1"]),  # of a command without a precision
        (Sizes(1, 1), []),
    ],
    ids=str,
)
def test_a_command_that_draws_names_the_sizes_it_can_halve(
    given: Settings | Sizes, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    @advised("eval_batch_size", "train_batch_size")
    def command(config: Settings | Sizes) -> None:
        torch.empty(10**15)

    with pytest.raises(SystemExit) as caught:
        command(given)
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error == f"error: {out_of_memory(named, torch.cuda.is_available())}\n"


def test_the_advice_holds_the_flags_in_their_order_and_says_whose_memory_it_is() -> None:
    said = out_of_memory(["--one 1", "--two"], on_gpu=True)
    assert said.index("--one 1") < said.index("--two") and "GPU" in said
    assert "GPU" not in out_of_memory(["--one 1"], on_gpu=False) and "--" not in out_of_memory(
        [], on_gpu=True
    )


def test_a_size_that_is_known_later_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), advising(Sizes(), "eval_batch_size", eval_batch_size=6):
        torch.empty(10**15)
    assert "--eval_batch_size 3" in capsys.readouterr().err


def test_what_is_no_lack_of_memory_goes_on() -> None:
    @advised("eval_batch_size")
    def command(config: Sizes) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command(Sizes())
