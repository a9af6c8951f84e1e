"""Erase a concept by a published method: `python -m benchmarks.baselines --method esd --concept "Van Gogh
style" --output_dir DIR`.

Prompts, anchors and what must stay are those that our own training resolves from the same flags; the adapter
is judged on the same prompts, seeds and steps, by the same judge. Written is what the training script writes:
adapter, results.json, before/after picture, model card.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import canvas
from benchmarks.baselines import METHODS
from benchmarks.baselines.command import add_task_arguments, choose_examination, prepare
from common.errors import friendly_errors
from common.files import write_aside
from common.memory import peak_memory_mb
from common.names import public_name
from evaluation.grid import before_after
from evaluation.protocol import Evaluation, evaluate, grid_title, table
from hub.adapter import save_adapter
from hub.card import GRID_NAME, save_model_card
from hub.files import require_empty
from hub.header import base_header, results_header
from hub.provenance import RESULTS_NAME
from policy.lora import ADAPTER


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_task_arguments(parser)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Where adapter, results, picture and card are written."
    )
    parser.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="Write into an output directory that is not empty.",
    )
    parser.add_argument(
        "--evaluation_seeds",
        type=int,
        nargs="*",
        default=[0, 1, 2],
        help="Seeds of the figures, one image a prompt and seed; the flag without a seed skips them.",
    )
    return parser.parse_args(input_args)


class Count:
    """How many samples a UNet has been given."""

    samples = 0


@contextmanager
def counted(unet: UNet2DConditionModel) -> Iterator[Count]:
    """Within: every sample that the UNet is given counts."""
    count = Count()

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        count.samples += len(inputs[0])

    hook = unet.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()


def main(args: argparse.Namespace) -> dict[str, Any]:
    if not args.overwrite_output_dir:
        require_empty(args.output_dir)
    task, settings, text_teacher = prepare(args)
    examination = choose_examination(args, task, text_teacher) if args.evaluation_seeds else None
    method, started = METHODS[args.method], time.perf_counter()
    with counted(task.unet) as count:
        facts = method.erase(task, settings, args.seed)
    cost = {
        "unet_samples": count.samples,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": peak_memory_mb(),
    }

    base = args.pretrained_model_name_or_path or canvas.PIPELINE
    results = {
        "concept": task.spec.concepts,
        "base_model_name_or_path": public_name(base),
        "method": method.title,
        "relative_error": facts.pop("relative_error", None),
        "settings": {"method": args.method, "seed": args.seed, **asdict(settings)},
    }
    found = evaluate(task.pipe, examination, args.evaluation_seeds) if examination else Evaluation({})
    results |= found.results
    results |= {
        "forget_prompts": task.spec.forget_prompts,
        "retain_prompts": task.spec.retain_prompts,
        "training": facts | cost,
    }
    save_adapter(args.output_dir, task.unet, ADAPTER, base_header(task.pipe) | results_header(results))
    if found.pairs:
        before_after(found.pairs, args.output_dir / GRID_NAME, grid_title(results))
        print(table(results))
    save_model_card(results, args.output_dir)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_aside(args.output_dir / RESULTS_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    return results


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
