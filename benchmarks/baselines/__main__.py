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
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import canvas
from benchmarks.baselines import METHODS
from benchmarks.baselines.task import Task
from environment.base import load_pipeline
from environment.concept_arguments import add_concept_arguments, load_teachers, read_given, resolve_spec
from environment.errors import friendly_errors
from evaluation.examination import JudgeExamination
from evaluation.grid import before_after
from evaluation.judge import Judge
from evaluation.protocol import Evaluation, evaluate, grid_title, public_name, table
from hub.adapter import save_adapter
from hub.card import GRID_NAME, save_model_card
from hub.files import require_empty
from hub.header import base_header, results_header
from hub.provenance import RESULTS_NAME
from networks.checkpoint import write_aside
from policy.adapter import ADAPTER
from reward.predictor import RewardPredictor
from reward.teacher import Teacher
from training.memory import peak_memory_mb


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


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is erased, from which base, and how."""
    parser.add_argument("--method", choices=list(METHODS), required=True, help="Which method.")
    add_concept_arguments(parser)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="Base pipeline: a diffusers directory or a Hub id. Default: the bundled canvas.",
    )
    parser.add_argument("--judge_name_or_path", type=Path, help="The base's judge. Default: the bundled one.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the run.")
    parser.add_argument(
        "--settings",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="Settings of the method in place of its own.",
    )


def changed(settings: Any, given: list[str]) -> Any:
    """`settings` with "name=value" texts in place of its own.

    Raises:
        ValueError: there is no setting of a name, or a value is of another type.
    """
    known, changes = {field.name: getattr(settings, field.name) for field in fields(settings)}, {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"There is no setting {name!r}; settings are {', '.join(known)}.")
        kind = type(known[name])
        try:
            changes[name] = tuple(value.split(",")) if kind is tuple else kind(value)
        except ValueError as error:
            raise ValueError(f"The setting {name} cannot be {value!r}.") from error
    return replace(settings, **changes)


def prepare(args: argparse.Namespace) -> tuple[Task, Any, Teacher]:
    """The task, the method's settings, and who knows which texts are near to one another.

    Raises:
        ValueError: something named does not exist or does not fit; the message says what to do.
    """
    settings = changed(METHODS[args.method].settings(), args.settings)
    given = read_given(args)
    _, text_teacher = load_teachers(args, given)
    known = RewardPredictor.from_pretrained(args.reward_model_name_or_path or canvas.REWARD).config["prompts"]
    spec, _ = resolve_spec(args, given, text_teacher, known)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(args.pretrained_model_name_or_path or canvas.PIPELINE).to(device)
    return Task.build(pipe, spec), settings, text_teacher


def choose_examination(args: argparse.Namespace, task: Task, text_teacher: Teacher) -> JudgeExamination:
    """The judge that is named, else the bundled one.

    Raises:
        ValueError: it cannot be loaded, or knows nothing of the concept.
    """
    path = args.judge_name_or_path or canvas.JUDGE
    judge = Judge.from_pretrained(path).to(task.pipe.device)
    return JudgeExamination(
        judge, task.spec.concepts, public_name(path), encode_text=text_teacher.encode_text
    )


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
