"""One measured run, a process of its own: `python -m benchmarks.memory.trial --cap 8 --output FILE --
ARGUMENTS OF THE TRAINING SCRIPT`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import train_unlearn_lora as script
from common.files import write_aside


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory.trial", description=__doc__)
    parser.add_argument("--cap", type=float, help="GB that PyTorch may take of the GPU. Default: all.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is written.")
    parser.add_argument("arguments", nargs="*", help="Arguments of the training script.")
    return parser.parse_args(input_args)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train; peak of what PyTorch has taken of the GPU and seconds an iteration, or what the run ended
    with."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        if args.cap:
            torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap * 1e9 / total))
    settings = script.parse_args(args.arguments)
    report: dict[str, Any] = {
        "cap_gb": args.cap,
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "arguments": args.arguments,
    }
    try:
        script.main(settings)
    except SystemExit as error:
        return report | {"fits": False, "exit_code": error.code}
    finally:
        if on_gpu:
            report |= {
                "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
                "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
            }
    lines = (settings.output_dir / "diagnostics.jsonl").read_text(encoding="utf-8").splitlines()
    training = json.loads((settings.output_dir / "results.json").read_text(encoding="utf-8"))["training"]
    figures = {
        "seconds": training["seconds"],
        "iterations": training["iterations"],
        "unet_samples": training["unet_samples"],
    }
    return (
        report
        | figures
        | {"fits": True, "judged_iterations": len(lines), "peak_memory_mb": training["peak_memory_mb"]}
    )


def main(args: argparse.Namespace) -> None:
    report = measure(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(
        args.output, lambda path: path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    )


if __name__ == "__main__":
    main(parse_args())
