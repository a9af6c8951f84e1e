"""One run of one variant: train on a fixed budget, judge the adapter on the way, write one JSON file."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

import train_unlearn_lora as script
from benchmarks.ablation.variants import VARIANTS
from common.checkpoints import list_checkpoints, load_checkpoint
from common.files import write_aside
from evaluation.examination import Examination
from pipelines.generate import evaluation_mode, generate
from policy.lora import base_policy, load_lora_state

JUDGED_STEPS = 16
"""Denoising steps of the images that are judged on the way: as many as a rollout's."""


def judged(
    pipe: StableDiffusionPipeline, examination: Examination, seeds: list[int]
) -> dict[str, float | None]:
    """UA, IRA and CRA of the pipeline as it is now."""
    with evaluation_mode(pipe):
        drawn = list(generate(pipe, examination.prompts, seeds, JUDGED_STEPS))
    ids = [i for i, _, _ in drawn]
    return examination.figures(examination.examine([image for _, _, image in drawn], ids), ids)


def train_and_judge(
    concept: str,
    seed: int,
    learning_rate: float,
    varied: list[str],
    budget: int,
    every: int,
    seeds: list[int],
) -> dict[str, Any]:
    """Train without a stop signal until `budget` images are drawn, and judge every so many iterations; the
    judge decides nothing.

    `varied` are further flags of the training script.
    """
    with tempfile.TemporaryDirectory() as directory:
        flags = [
            "--concept",
            *concept.split(" + "),
            "--seed",
            str(seed),
            "--learning_rate",
            str(learning_rate),
            "--output_dir",
            f"{directory}/run",
        ]
        flags += [
            "--report_to",
            "none",
            "--validation_steps",
            "0",
            "--target_unlearning_accuracy",
            "1.01",
            "--evaluation_seeds",
            "0",
        ]
        flags += [
            "--checkpointing_steps",
            str(every),
            "--checkpoints_total_limit",
            "1000000",
            "--cooldown_updates",
            "0",
            *varied,
        ]
        args = script.parse_args(flags)
        start, each = (
            args.retain_rollouts + args.warmup_rollouts,
            args.images_per_iteration + args.retain_batch_size,
        )
        iterations = (budget - start) // each + (
            not script.choose_estimator(args).uses_critic
        )  # the first one draws none without a critic
        args.max_train_iterations = every * max(1, iterations // every)
        parts = script.prepare(args)
        env, examination = parts.env, parts.examination
        assert examination is not None
        args.evaluation_seeds = []  # the figures come from here
        results = script.train(args, *parts._replace(examination=None))
        unet, curve = env.pipe.unet, []
        with base_policy(unet):
            base = judged(env.pipe, examination, seeds)
        for checkpoint in list_checkpoints(args.output_dir):
            groups, numbers = load_checkpoint(args.output_dir, str(checkpoint))
            load_lora_state(unet, groups["lora"])
            progress = {name: numbers["progress"][name] for name in ("images", "seconds")}
            curve.append(
                {"iteration": numbers["iteration"], **progress, **judged(env.pipe, examination, seeds)}
            )
        lines = (args.output_dir / "diagnostics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "concept": concept,
        "seed": seed,
        "learning_rate": learning_rate,
        "flags": varied,
        "base": base,
        "curve": curve,
        "training": results["training"],
        "diagnostics": [json.loads(line) for line in lines],
    }


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of one run that is judged on the way, whoever trains it."""
    parser.add_argument("--concept", required=True, help="What is erased.")
    parser.add_argument("--seed", type=int, required=True, help="Training seed.")
    parser.add_argument("--learning_rate", type=float, required=True, help="Learning rate of the adapter.")
    parser.add_argument(
        "--budget", type=int, required=True, help="Images drawn in all, those of a warm-up included."
    )
    parser.add_argument("--every", type=int, required=True, help="Iterations between two judgements.")
    parser.add_argument(
        "--judge_seeds",
        type=int,
        nargs="+",
        required=True,
        help="One image a prompt and seed in every judgement.",
    )
    parser.add_argument("--output", type=Path, required=True, help="The JSON file.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation.run", description=__doc__)
    parser.add_argument("--variant", choices=list(VARIANTS), required=True, help="What is varied.")
    add_run_arguments(parser)
    args = parser.parse_args()
    varied = VARIANTS[args.variant]
    found = train_and_judge(
        args.concept, args.seed, args.learning_rate, varied, args.budget, args.every, args.judge_seeds
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(
        args.output,
        lambda path: path.write_text(json.dumps({"variant": args.variant, **found}) + "\n", encoding="utf-8"),
    )


if __name__ == "__main__":
    main()
