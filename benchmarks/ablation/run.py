"""One run of one variant: train on a fixed budget, judge its checkpoints, write one JSON file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from benchmarks.ablation.variants import VARIANTS
from benchmarks.jobs import run_script
from benchmarks.report import write_json
from common.checkpoints import list_checkpoints, load_checkpoint
from common.errors import friendly_errors
from common.flags import IMAGE_SEED, SEED, flag, parse
from evaluation.examination import Examination
from hub.results import read_diagnostics, read_results
from pipelines.generate import evaluation_mode, generate
from training.config import RunConfig, parse_config
from training.setup import Run, prepare

JUDGED_STEPS = 16
"""Denoising steps of the images that are judged on the way: as many as a rollout's."""


@dataclass(frozen=True)
class TrialConfig:
    """A run that is judged on the way."""

    concept: str = flag(help='What is erased; "a + b" names two concepts.')
    seed: int = flag(within=SEED, help="Training seed.")
    learning_rate: float = flag(above=0, help="Learning rate of the adapter.")
    budget: int = flag(at_least=1, help="Images drawn in all, those of a warm-up included.")
    every: int = flag(at_least=1, help="Iterations between two judgements.")
    judge_seeds: tuple[int, ...] = flag(
        within=IMAGE_SEED, help="One image for each prompt and seed in every judgement."
    )
    output: Path = flag(help="The JSON file.")


@dataclass(frozen=True)
class VariantConfig(TrialConfig):
    """A run of a variant that is judged on the way."""

    variant: str = flag(choices=VARIANTS, help="What is varied.")


def judged(
    pipe: StableDiffusionPipeline, examination: Examination, seeds: Sequence[int]
) -> dict[str, float | None]:
    """UA, IRA and CRA of the pipeline as it is now."""
    with evaluation_mode(pipe):
        drawn = list(
            generate(
                pipe,
                examination.prompts,
                seeds,
                num_inference_steps=JUDGED_STEPS,
                guidance_scale=examination.guidance_scale,
            )
        )
    ids = [i for i, _, _ in drawn]
    return examination.metrics(examination.examine([image for _, _, image in drawn], ids), ids)


def run_flags(trial: TrialConfig, varied: Sequence[str], directory: Path) -> list[str]:
    """Flags of the training script for a run without a stop signal, until `trial.budget` images are drawn,
    with a checkpoint for every judgement.

    Args:
        varied: further flags.
        directory: where the run goes.
    """
    given = {
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "output_dir": directory,
        "report_to": "none",
        "validation_steps": 0,
        "target_unlearning_accuracy": 1.01,
        "checkpointing_steps": trial.every,
        "checkpoints_total_limit": 1_000_000,
        "cooldown_updates": 0,
    }
    flags = ["--concept", *trial.concept.split(" + ")]
    flags += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    flags += varied
    iterations = iterations_within(parse_config(flags), trial.budget)
    return [*flags, "--max_train_iterations", str(trial.every * max(1, iterations // trial.every))]


def iterations_within(config: RunConfig, budget: int) -> int:
    """Number of iterations that a budget of images lasts for."""
    schedule = config.schedule
    start = schedule.retain_rollouts + schedule.warmup_rollouts + config.concept.num_vocabulary_prompts
    each = schedule.images_per_iteration + config.update.retain_batch_size
    # From the base and without a critic, the first iteration draws none.
    none_drawn = not (config.credit.estimator.uses_critic or config.adapter.train_text_encoder)
    return (budget - start) // each + none_drawn


def prepare_judge(flags: Sequence[str], directory: Path) -> Run:
    """A run of these flags that is not begun, with the judge who will look at its checkpoints.

    Args:
        directory: is not made.
    """
    return prepare(parse_config([*flags, "--output_dir", str(directory), "--evaluation_seeds", "0"]))


def judge_run(run: Run, directory: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """UA, IRA and CRA of the base, and of every checkpoint in a directory with what it has cost so far."""
    assert run.examination is not None
    with run.policy.base():
        base = judged(run.env.pipe, run.examination, seeds)
    curve = []
    for checkpoint in list_checkpoints(directory):
        groups, numbers = load_checkpoint(directory, str(checkpoint))
        run.policy.load_state(groups["lora"])
        spent = {name: numbers["progress"][name] for name in ("images", "seconds")}
        found = judged(run.env.pipe, run.examination, seeds)
        curve.append({"iteration": numbers["iteration"], **spent, **found})
    return {"base": base, "curve": curve}


def train_and_judge(trial: TrialConfig, varied: Sequence[str]) -> dict[str, Any]:
    """Train by the training script, and judge its checkpoints; the judge decides nothing.

    Args:
        varied: further flags of the training script.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        flags = run_flags(trial, varied, directory)
        run_script([*flags, "--evaluation_seeds"])
        results, diagnostics = read_results(directory), read_diagnostics(directory)
        found = judge_run(prepare_judge(flags, Path(name) / "judge"), directory, trial.judge_seeds)
    return {
        "concept": trial.concept,
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "flags": list(varied),
        **found,
        "training": results["training"],
        "diagnostics": diagnostics,
    }


def main() -> None:
    config = parse(VariantConfig, None, __doc__, prog="python -m benchmarks.ablation.run")
    found = train_and_judge(config, VARIANTS[config.variant])
    write_json(config.output, {"variant": config.variant, **found})


if __name__ == "__main__":
    with friendly_errors():
        main()
