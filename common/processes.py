"""What the processes of a run share: each passes its own rows through the networks, and all of them get all
rows.

Random choices are made alike by every process, for all rows, and what comes out is gathered at once. So
whatever is computed from it, and whatever is decided, is the same everywhere, and a run does not depend on
the number of its processes but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, parse_flag_from_env, reduce


def processes() -> PartialState:
    """The processes of this run, also where it is the first to ask: by itself PartialState overlooks that
    a launch on CPUs has several."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_rows(count: int) -> slice:
    """This process's rows of `count`: neighbours, and at most one fewer than any other process has."""
    state = processes()
    return _rows_of(state.process_index, count)


def _rows_of(process: int, count: int) -> slice:
    shares = processes().num_processes
    return slice(count * process // shares, count * (process + 1) // shares)


def own_batches(count: int, size: int) -> list[slice]:
    """This process's rows of `count` in parts of `size`."""
    own = own_rows(count)
    return [slice(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]


def all_rows(mine: torch.Tensor, count: int) -> torch.Tensor:
    """This process's rows (b, ...) of `count` -> those of all processes (count, ...), in their order,
    where `mine` lies."""
    state = processes()
    if state.num_processes == 1:
        return mine
    most = -(-count // state.num_processes)
    padded = torch.zeros(most, *mine.shape[1:], dtype=mine.dtype, device=state.device)
    padded[: len(mine)] = mine
    shares = gather(padded).to(mine.device).unflatten(0, (state.num_processes, most))
    sizes = [len(range(count)[_rows_of(process, count)]) for process in range(state.num_processes)]
    return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)])


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add the gradients up over the processes: an adapter is small, so once an optimizer step and by hand
    is cheapest."""
    if processes().num_processes > 1:
        for p in parameters:
            p.grad = reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="sum")


def keep_in_step(network: torch.nn.Module) -> None:
    """Give every process the first one's weights: on GPUs the same sums need not come out the same."""
    if processes().num_processes > 1:
        for p in network.parameters():
            p.data.copy_(broadcast(p.data))


def anywhere(here: bool) -> bool:
    """Whether it is so on any process."""
    state = processes()
    return (
        here
        if state.num_processes == 1
        else bool(gather(torch.tensor([float(here)], device=state.device)).any())
    )
