"""One measured run, a process of its own: `python -m benchmarks.memory.trial --cap 8 --output FILE --
ARGUMENTS OF THE TRAINING SCRIPT`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import run_script, split_arguments
from benchmarks.report import write_json
from common.errors import friendly_errors
from common.flags import flag, parse
from hub.results import read_diagnostics, read_results
from training.config import parse_config


@dataclass(frozen=True)
class TrialConfig:
    """Measurement."""

    output: Path = flag(help="JSON file that is written.")
    cap: float | None = flag(None, above=0, help="GB that PyTorch may take of the GPU. Default: all.")


def forget_peak() -> None:
    """Give back what nobody holds of the GPU, and count its peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """GB of the GPU that PyTorch has given out and taken at most since `forget_peak`; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def measure(arguments: Sequence[str], cap: float | None = None) -> dict[str, Any]:
    """Train by the training script; peak of what PyTorch has taken of the GPU and seconds an iteration, or
    what the run ended with.

    Args:
        arguments: of the training script.
        cap: GB that PyTorch may take of the GPU.
    """
    on_gpu = torch.cuda.is_available()
    forget_peak()
    if on_gpu and cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 1e9 / total))
    output_dir = parse_config(arguments).output.output_dir
    report: dict[str, Any] = {
        "cap_gb": cap,
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "arguments": list(arguments),
    }
    try:
        run_script(arguments)
    except SystemExit as error:
        return report | peak() | {"fits": False, "exit_code": error.code}
    training = read_results(output_dir)["training"]
    kept = ("seconds", "iterations", "unet_samples", "peak_memory_mb")
    return (
        report
        | peak()
        | {name: training[name] for name in kept}
        | {"fits": True, "judged_iterations": len(read_diagnostics(output_dir))}
    )


def parse_trial(arguments: Sequence[str] | None = None) -> tuple[TrialConfig, list[str]]:
    """The settings of a command line, and the arguments of the training script."""
    own, passed_on = split_arguments(arguments)
    return parse(TrialConfig, own, __doc__, prog="python -m benchmarks.memory.trial"), passed_on


def main() -> None:
    config, arguments = parse_trial()
    write_json(config.output, measure(arguments, config.cap))


if __name__ == "__main__":
    with friendly_errors():
        main()
