"""What a run would do and cost, before anything is written: `--dry_run`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from common.memory import peak_memory_mb
from evaluation.protocol import list_jobs
from policy.trajectory import Experience, Trajectory
from training.setup import Run

SHOWN = 4
"""How many texts of a list are shown."""


@dataclass(frozen=True)
class Costs:
    """What a probe has measured.

    Attributes:
        draw: seconds for an image of a rollout.
        learn: seconds to update the policy by an image.
        memory: peak in MB (`common.memory`), if the system says.
    """

    draw: float
    learn: float
    memory: float | None


@dataclass(frozen=True)
class Amounts:
    """How much there is to do.

    Attributes:
        before: images drawn before the first iteration.
        drawn: images drawn in an iteration.
        learnt: those of them that the policy learns from.
        iterations: at most.
        cooldown: updates after the last.
        evaluated: images of the final metrics, both sides together.
        evaluation_steps: their denoising steps, and `steps` those of a rollout.
    """

    before: int
    drawn: int
    learnt: int
    iterations: int
    cooldown: int
    evaluated: int
    evaluation_steps: int
    steps: int

    def seconds(self, costs: Costs) -> dict[str, float]:
        """By stage; "iteration" is one of them."""
        return {
            "before": self.before * costs.draw,
            "iteration": self.drawn * costs.draw + self.learnt * costs.learn,
            "cooldown": self.cooldown * self.learnt * costs.learn,
            "evaluation": self.evaluated * costs.draw * self.evaluation_steps / self.steps,
        }


def probe(
    draw: Callable[[], object], learn: Callable[[], object], images: int, device: torch.device
) -> Costs:
    """Time `draw` and then `learn`, each of which is about so many images."""

    def seconds(act: Callable[[], object]) -> float:
        started = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / images

    return Costs(seconds(draw), seconds(learn), memory=peak_memory_mb())


def costs_in_words(amounts: Amounts, costs: Costs) -> dict[str, str]:
    """Images, time and memory, by what the plan calls them."""
    seconds = amounts.seconds(costs)
    longest = (
        seconds["before"]
        + amounts.iterations * seconds["iteration"]
        + seconds["cooldown"]
        + seconds["evaluation"]
    )
    return {
        "Images": f"{amounts.before} before training, {amounts.drawn} an iteration, {amounts.evaluated} in the evaluation",
        "Time": f"{duration(seconds['before'])} before training, {duration(seconds['iteration'])} an iteration, "
        f"{duration(seconds['evaluation'])} for the evaluation; {duration(longest)} if it takes all {amounts.iterations} iterations",
        "Memory": f"{costs.memory / 1000:.1f} GB at the probe's peak; a whole batch takes more"
        if costs.memory
        else "unknown",
    }


def duration(seconds: float) -> str:
    """As 0:01:30, seldom more exact than the probe was."""
    return str(datetime.timedelta(seconds=max(1, round(seconds))))


def listing(texts: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    shown = ", ".join(f'"{text}"' for text in texts[:SHOWN])
    return f"{len(texts)}: {shown}{', …' if len(texts) > SHOWN else ''}"


PROBED = 16
"""Images at most that the costs are measured on."""


def plan(run: Run) -> dict[str, str]:
    """What a run would do, by what it is called; the costs come from a probe that rolls out and learns from a
    few images."""
    env, config, schedule = run.env, run.config, run.config.schedule
    generator = torch.Generator().manual_seed(config.output.seed)
    most = min(env.batch_size, schedule.images_per_iteration, PROBED)
    count = max(run.accelerator.num_processes, most)
    retain = env.collect(env.draw(env.retain_ids, count, generator), generator)
    forget = env.draw(env.forget_ids, count, generator)
    rolled_out: list[Trajectory] = []

    def draw() -> None:
        rolled_out.append(env.collect(forget, generator))

    def learn() -> None:
        trajectory = rolled_out[0]
        gradients = torch.zeros_like(trajectory.means) if config.credit.estimator.pathwise else None
        advantages = torch.zeros_like(trajectory.log_probs)
        run.policy.update(
            [Experience(trajectory, advantages, retain.prompt_ids, gradients)],
            retain,
            optimizer=run.optimizer,
            accelerator=run.accelerator,
            config=config.update,
            generator=generator,
        )

    costs = probe(draw, learn, count, run.accelerator.device)
    examination, seeds = run.examination, config.validation.evaluation_seeds
    amounts = Amounts(
        before=schedule.retain_rollouts + schedule.warmup_rollouts + len(env.vocabulary_ids),
        drawn=schedule.images_per_iteration + config.update.retain_batch_size,
        learnt=schedule.images_per_iteration,
        iterations=schedule.max_train_iterations,
        cooldown=schedule.cooldown_updates,
        evaluated=2 * len(list_jobs(examination, seeds)) if examination else 0,
        evaluation_steps=examination.num_inference_steps if examination else 0,
        steps=env.kernel.num_steps,
    )
    spec, parameters = env.spec, [p for group in run.optimizer.param_groups for p in group["params"]]
    anchors = sorted({text for row in spec.anchors for text in row})
    confusable = "; ".join(f"{concept}: {listing(texts)}" for concept, texts in spec.confusable.items())
    kinds = f" ({', '.join(sorted(set(spec.kinds)))})" if spec.kinds else ""
    return {
        "Concept": ", ".join(spec.concepts) + kinds,
        "To forget": listing(spec.forget_prompts),
        "To keep": listing(spec.retain_prompts),
        "In its place": listing(anchors),
        "Neither": confusable or "nothing",
        "Base": config.base_name,
        "Judge": examination.name if examination else "none",
        "Objective": f"--advantage {config.credit.advantage}, KL {config.update.kl_coef:g} on what is kept and "
        f"{config.update.anchor_kl_coef:g} on what takes the concept's place",
        "Policy": f"LoRA of rank {config.adapter.rank}, {sum(p.numel() for p in parameters):,} parameters",
        "Ends": f"once {100 * schedule.target_unlearning_accuracy:g} % of {schedule.patience} iterations' images "
        f"show something else, after {schedule.max_train_iterations} iterations at most",
        **costs_in_words(amounts, costs),
        "Writes to": str(config.output.output_dir),
    }


def print_plan(run: Run) -> None:
    """Print what a run would do, on the process that writes."""
    planned = plan(run)
    if run.is_main:
        print("\n".join(f"{name:<14}{text}" for name, text in planned.items()))
