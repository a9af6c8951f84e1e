"""The most memory that a run has held so far, and what to do where there is not enough of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import torch

from common.errors import friendly_memory

STATUS = Path("/proc/self/status")
"""Where Linux says it. getrusage(2) would count what the process that started this one held, too."""


def peak_memory_mb() -> float | None:
    """In MB: what PyTorch has allocated on the GPU if there is one, else the process's resident memory, its
    libraries included.

    None where the system does not say.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


def flags_to_try(args: argparse.Namespace, on_gpu: bool) -> list[str]:
    """The flags that would save memory and are not given yet, what costs least first.

    Args:
        args: the run's own.
        on_gpu: what lies in main memory saves none of it on a CPU.
    """
    quantized = args.load_in_8bit or args.load_in_4bit or args.bnb_quantization_config_path
    size = args.train_batch_size or 1  # not known yet while the base is being loaded
    steps = [
        ("--mixed_precision bf16", args.mixed_precision == "no"),
        (f"--train_batch_size {size // 2}", size > 4),
        ("--gradient_checkpointing", not args.gradient_checkpointing),
        ("--offload_models", on_gpu and not args.offload_models),
        ("--offload_trajectories", on_gpu and not args.offload_trajectories),
        (f"--train_batch_size {max(1, size // 2)}", 1 < size <= 4),
        ("--load_in_4bit", not quantized),
        ("--load_in_4bit in place of --load_in_8bit", args.load_in_8bit),
    ]
    return [flag for flag, helps in steps if helps]


def out_of_memory(flags: Sequence[str], on_gpu: bool) -> str:
    """The sentence for a run that there is not enough memory for, with the flags that would save some."""
    advice = (
        f"try, in this order and together: {', '.join(flags)}"
        if flags
        else "every flag that saves memory is set: take a larger device"
    )
    return f"there is not enough {'GPU ' if on_gpu else ''}memory; {advice} (docs/hardware.md)."


Command = Callable[[argparse.Namespace], None]


def advised(*sizes: str) -> Callable[[Command], Command]:
    """Of a command that draws: a lack of memory ends in the sentence above, which names --mixed_precision and
    half of these batch sizes.

    Args:
        sizes: the flags' names, of what costs least first. What is None when memory is lacking is not known
            yet and not named.
    """

    def smaller(args: argparse.Namespace) -> list[str]:
        precision = (
            ["--mixed_precision bf16"] if getattr(args, "mixed_precision", "bf16") in ("no", None) else []
        )
        return precision + [
            f"--{name} {size // 2}" for name in sizes if (size := getattr(args, name) or 1) > 1
        ]

    def wrap(command: Command) -> Command:
        @wraps(command)
        def run(args: argparse.Namespace) -> None:
            with friendly_memory(lambda: out_of_memory(smaller(args), torch.cuda.is_available())):
                command(args)

        return run

    return wrap
