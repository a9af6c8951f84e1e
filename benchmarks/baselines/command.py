"""The flags of a baseline's command line, and what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

import canvas
from benchmarks.baselines import METHODS
from benchmarks.baselines.task import Task
from common.flags import SEED, Range, flag, shown
from evaluation.choice import examination_of_spec
from evaluation.examination import Examination
from pipelines.backbone import Backbone
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
    seed: int = flag(0, within=SEED, help="Seed of the run.")
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


RANGES = {
    "learning_rate": Range(at_least=0),
    "steps": Range(at_least=1),
    "batch_size": Range(at_least=1),
    "rank": Range(at_least=1),
    "lora_alpha": Range(above=0),
    "lr_warmup": Range(at_least=0, at_most=1),
    "lr_cycles": Range(at_least=1),
    "weight_decay": Range(at_least=0),
    "max_grad_norm": Range(above=0),
    "guidance_scale": Range(at_least=0),
    "num_inference_steps": Range(at_least=1),
    "images": Range(at_least=1),
    "regularisation": Range(at_least=0),
    "eta": Range(at_least=0),
    "random_scale": Range(at_least=0),
    "semantic_scale": Range(at_least=0),
    "erase_scale": Range(at_least=0),
    "preserve_scale": Range(at_least=0),
    "damping": Range(at_least=0),
    "tolerance": Range(at_least=0, at_most=1),
    "iterations": Range(at_least=0),
    "anchoring": Range(at_least=0),
    "anchors": Range(at_least=1),
}
"""Where the numbers of the methods' settings may lie."""


def changed(settings: Any, given: Sequence[str]) -> Any:
    """`settings` with "name=value" texts in place of its own.

    Raises:
        ValueError: there is no setting of a name, or a value is of another type or outside its range.
    """
    known, changes = {field.name: getattr(settings, field.name) for field in fields(settings)}, {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"There is no setting {shown(name)}; settings are {', '.join(known)}.")
        kind = type(known[name])
        try:
            changes[name] = tuple(value.split(",")) if kind is tuple else kind(value)
        except ValueError as error:
            raise ValueError(f"The setting {name} cannot be {shown(value)}.") from error
        if name in RANGES and (wanted := RANGES[name].why_not(changes[name])):
            raise ValueError(f"The setting {name} must be {wanted}, got {shown(value)}.")
    return replace(settings, **changes)


def prepare(config: TaskConfig) -> Prepared:
    """Load what the flags name.

    Raises:
        ValueError: something named does not exist or does not fit; the message says what to do.
    """
    method = METHODS[config.method.method]
    settings = changed(method.settings(), config.method.settings)
    inputs = read_inputs(config.concept, config.reward)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, teacher = load_teachers(config.reward, inputs, config.base.is_bundled, device=device)
    predictor = config.reward.reward_model_name_or_path or canvas.REWARD
    known = RewardPredictor.from_pretrained(predictor).config["prompts"]
    spec, _ = resolve_spec(config.concept, inputs, teacher, known)
    pipe = load_base(config.base)
    if method.needs_unet and Backbone.of(pipe).is_flow:
        others = ", ".join(name for name, other in METHODS.items() if not other.needs_unet)
        raise ValueError(f"{method.title} is for UNets; for a transformer take one of {others}.")
    return Prepared(Task.build(pipe.to(device), spec), settings, teacher)


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
