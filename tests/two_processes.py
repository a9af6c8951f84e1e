"""Two real processes that share a command's work, forked so that they need not import everything again."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkProcess

from accelerate import PartialState
from accelerate.state import AcceleratorState


def start_two_processes(command: Callable[[list[str]], object], arguments: list[str]) -> list[ForkProcess]:
    """Start `command(arguments)` as ranks 0 and 1 of a gloo group on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        multiprocessing.get_context("fork").Process(target=_work, args=(rank, port, command, arguments))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    return workers


def run_in_two_processes(
    command: Callable[[list[str]], object], arguments: list[str], seconds: float = 120
) -> None:
    """Run it so; both must end well."""
    workers = start_two_processes(command, arguments)
    for worker in workers:
        worker.join(seconds)
    assert [worker.exitcode for worker in workers] == [0, 0]


def _work(rank: int, port: int, command: Callable[[list[str]], object], arguments: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    # Else accelerate gives each half of the cores: threads that wait for one another where tests run beside
    # these, and sums in another order than those of the one process that both are compared with.
    os.environ["OMP_NUM_THREADS"] = "1"
    AcceleratorState._reset_state(reset_partial_state=True)
    command(arguments)
    assert PartialState().num_processes == 2
