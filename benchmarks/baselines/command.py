"""The flags of a baseline's command line, and what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

import canvas
from benchmarks.baselines import METHODS
from benchmarks.baselines.task import Task
from common.flags import flag
from evaluation.choice import examination_of_spec
from evaluation.examination import Examination
from pipelines.base import BaseConfig, load_base
from reward.arguments import ConceptConfig, RewardConfig, load_teachers, read_inputs, resolve_spec
from reward.predictor import RewardPredictor
from reward.teacher import Teacher


@dataclass(frozen=True)
class MethodConfig:
    """Method."""

    method: str = flag(choices=tuple(METHODS), help="Which method.")
    settings: tuple[str, ...] = flag(
        (), nargs="*", metavar="NAME=VALUE", help="Settings of the method in place of its own."
    )
    seed: int = flag(0, help="Seed of the run.")
    judge_name_or_path: str | None = flag(
        None,
        help="The base's judge. Default: the bundled one for the bundled base, else the teacher, marked as "
        "such.",
    )


@dataclass(frozen=True)
class TaskConfig:
    """What is erased, from which base, and how."""

    concept: ConceptConfig
    base: BaseConfig
    reward: RewardConfig
    method: MethodConfig


@dataclass(frozen=True)
class Prepared:
    """What a method is run on.

    Attributes:
        settings: the method's.
        teacher: who knows which texts are near to one another, and judges where there is no judge.
    """

    task: Task
    settings: Any
    teacher: Teacher


def changed(settings: Any, given: Sequence[str]) -> Any:
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


def prepare(config: TaskConfig) -> Prepared:
    """Load what the flags name.

    Raises:
        ValueError: something named does not exist or does not fit; the message says what to do.
    """
    settings = changed(METHODS[config.method.method].settings(), config.method.settings)
    inputs = read_inputs(config.concept, config.reward)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, teacher = load_teachers(config.reward, inputs, config.base.is_bundled, device=device)
    predictor = config.reward.reward_model_name_or_path or canvas.REWARD
    known = RewardPredictor.from_pretrained(predictor).config["prompts"]
    spec, _ = resolve_spec(config.concept, inputs, teacher, known)
    return Prepared(Task.build(load_base(config.base).to(device), spec), settings, teacher)


def choose_examination(config: TaskConfig, prepared: Prepared) -> Examination:
    """The judge that is named, the bundled one for the bundled base, else the teacher.

    Raises:
        ValueError: the judge that is named cannot be loaded, or knows nothing of the concept.
    """
    return examination_of_spec(
        prepared.task.spec,
        prepared.teacher,
        config.method.judge_name_or_path,
        bundled=config.base.is_bundled,
    )
