"""Erase a concept by a published method: `python -m benchmarks.baselines --method esd --concept "Van Gogh
style" --output_dir DIR`.

Prompts, anchors and what must stay are those that our own training resolves from the same flags; the adapter
is judged on the same prompts, seeds and steps, by the same judge. Written is what the training script writes:
adapter, results.json, before/after picture, model card.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.baselines import METHODS
from benchmarks.baselines.command import Prepared, TaskConfig, choose_examination, prepare
from benchmarks.report import write_json
from common.errors import friendly_errors
from common.flags import IMAGE_SEED, flag, parse
from common.memory import peak_memory_mb
from common.names import public_name
from evaluation.grid import before_after
from evaluation.protocol import Evaluation, evaluate, grid_title, table
from hub.adapter import save_adapter
from hub.card import GRID_NAME, save_model_card
from hub.files import require_empty
from hub.header import base_header, results_header
from hub.results import RESULTS_NAME
from pipelines.meter import counted
from policy.lora import ADAPTER


@dataclass(frozen=True)
class OutputConfig:
    """Output and evaluation."""

    output_dir: Path = flag(help="Where adapter, results, picture and card are written.")
    overwrite_output_dir: bool = flag(False, help="Write into an output directory that is not empty.")
    evaluation_seeds: tuple[int, ...] = flag(
        (0, 1, 2),
        within=IMAGE_SEED,
        nargs="*",
        help="Seeds of the evaluation, one image for each prompt and seed; the flag without a seed skips it.",
    )


@dataclass(frozen=True)
class BaselineConfig:
    """All settings of a run."""

    task: TaskConfig
    output: OutputConfig


def parse_config(arguments: Sequence[str] | None = None) -> BaselineConfig:
    """The settings of a command line."""
    return parse(BaselineConfig, arguments, __doc__, prog="python -m benchmarks.baselines")


def erase(config: TaskConfig, prepared: Prepared) -> dict[str, Any]:
    """Leave the adapter on the task's network; what the method found, and what it cost."""
    method, started = METHODS[config.method.method], time.perf_counter()
    with counted(prepared.task.denoiser) as count:
        facts = method.erase(prepared.task, prepared.settings, config.method.seed)
    return facts | {
        "unet_samples": count.samples,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": peak_memory_mb(),
    }


def main(config: BaselineConfig) -> dict[str, Any]:
    """Erase, evaluate, write; the results."""
    output, given = config.output, config.task.method
    if not output.overwrite_output_dir:
        require_empty(output.output_dir)
    prepared = prepare(config.task)
    examination = choose_examination(config.task, prepared) if output.evaluation_seeds else None
    cost, task = erase(config.task, prepared), prepared.task
    results = {
        "concept": task.spec.concepts,
        "base_model_name_or_path": public_name(config.task.base.name),
        "method": METHODS[given.method].title,
        "date": datetime.now(UTC).date().isoformat(),
        "relative_error": cost.pop("relative_error", None),
        "settings": {"method": given.method, "seed": given.seed, **asdict(prepared.settings)},
    }
    found = Evaluation({})
    if examination:
        found = evaluate(task.pipe, examination, list(output.evaluation_seeds))
    results |= found.results
    results |= {
        "forget_prompts": task.spec.forget_prompts,
        "retain_prompts": task.spec.retain_prompts,
        "training": cost,
    }
    header = base_header(task.pipe) | results_header(results)
    encoders = {"text_encoder": task.pipe.text_encoder}
    save_adapter(output.output_dir, task.denoiser, ADAPTER, header, text_encoders=encoders)
    if found.pairs:
        before_after(found.pairs, output.output_dir / GRID_NAME, grid_title(results))
        print(table(results))
    save_model_card(results, output.output_dir)
    write_json(output.output_dir / RESULTS_NAME, results)
    return results


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
