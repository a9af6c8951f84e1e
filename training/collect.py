"""Rollouts of the policy and their rewards: what an iteration learns from, and what it watches."""

from __future__ import annotations

from dataclasses import dataclass

from environment.environment import ForgetScore
from policy.trajectory import Trajectory
from training.metrics import image_metrics
from training.seeds import Purpose, generator_for
from training.setup import Run


@dataclass
class Batch:
    """An iteration's trajectories of forget prompts, their score, and metrics of all its images."""

    trajectory: Trajectory
    score: ForgetScore
    metrics: dict[str, float]


def collect(run: Run, iteration: int, recognisable: float) -> Batch:
    """Roll the policy out on forget prompts, to learn from, and on a few retain prompts, to watch.

    Args:
        recognisable: the cosine from which on an image shows something (`training.metrics.image_metrics`).
    """
    env, config = run.env, run.config
    generator = generator_for(config.output.seed, Purpose.ROLLOUT, iteration)
    ids = env.draw(env.forget_ids, config.schedule.images_per_iteration, generator)
    trajectory = env.collect(ids, generator)
    score = env.score_forget(trajectory)
    ids = env.draw(env.retain_ids, config.update.retain_batch_size, generator)
    check = env.score_retain(env.collect(ids, generator))
    return Batch(trajectory, score, image_metrics(env, score, check, recognisable))
