"""The flags of a baseline's command line, and what they name."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import canvas
from benchmarks.baselines import METHODS
from benchmarks.baselines.task import Task
from common.names import public_name
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge
from pipelines.base import load_pipeline
from reward.arguments import add_concept_arguments, load_teachers, read_given, resolve_spec
from reward.predictor import RewardPredictor
from reward.teacher import Teacher


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
