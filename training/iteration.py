"""The parts of an iteration, as the script's loop names them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from critic.credit import credit, observe, values_of
from critic.credit import learn as learn_critic
from policy.trajectory import Experience
from training.baseline import Baseline
from training.collect import Batch, collect
from training.metrics import advantage_metrics, critic_metrics, update_metrics
from training.optimizer import scaled_rate
from training.run_state import RunState
from training.seeds import Purpose, generator_for
from training.setup import Run


def rollout(run: Run, state: RunState, base: Baseline) -> Batch:
    """Trajectories of the policy as it is, and their rewards."""
    progress, config = state.progress, run.config
    if state.policy_is_base and not config.credit.estimator.uses_critic:
        return base.acted  # a critic would be asked about what it has learnt by heart
    count = config.schedule.images_per_iteration + config.update.retain_batch_size
    progress.images += count
    progress.unet_samples += run.policy.branches * run.env.kernel.num_steps * count
    return collect(run, progress.iteration, base.recognisable)


def estimate_values(run: Run, batch: Batch) -> torch.Tensor:
    """V(x_t, t, c) of every state that was acted on, (B, T)."""
    potentials = batch.score.potentials
    values = values_of(run.critic, run.env, batch.trajectory, potentials)
    if run.critic.kind != "none":
        returns = run.config.credit.estimator.returns(potentials)
        batch.metrics |= critic_metrics(run.env, values, returns, batch.trajectory.prompt_ids)
    return values


def assign_credit(run: Run, base: Baseline, batch: Batch, values: torch.Tensor) -> Experience:
    """What every denoising step was worth: its advantage, or the gradient of its value."""
    return credit(
        run.config.credit,
        run.env,
        run.critic,
        batch.trajectory,
        batch.score,
        values=values,
        gradient_scale=base.gradient_scale,
    )


def update_policy(run: Run, state: RunState, base: Baseline, batch: Batch, experience: Experience) -> None:
    """Clipped policy-gradient updates on fresh and replayed experience, held to the base on retain
    prompts."""
    progress = state.progress
    share = run.config.optimizer.share(batch.metrics["shortfall"])
    with scaled_rate(run.optimizer, share):
        stats = run.policy.update(
            [experience, *state.replay],
            base.retain,
            optimizer=run.optimizer,
            accelerator=run.accelerator,
            config=replace(run.config.update, kl_coef=progress.kl_coef),
            generator=generator_for(run.config.output.seed, Purpose.UPDATE, progress.iteration),
        )
        batch.metrics["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    batch.metrics |= update_metrics(run.env, stats) | advantage_metrics(run.env, experience.advantages)
    batch.metrics |= state.record(experience, stats)


def update_critic(run: Run, state: RunState, batch: Batch) -> None:
    """Let the critic see what became of the trajectories, and learn from the last ones that it saw."""
    config, potentials = run.config, batch.score.potentials
    if not state.nonfinite:
        observe(run.critic, run.env, batch.trajectory, potentials, estimator=config.credit.estimator)
    generator = generator_for(config.output.seed, Purpose.CRITIC, state.progress.iteration)
    batch.metrics |= learn_critic(run.critic, config.critic, generator)


@contextmanager
def timed(state: RunState) -> Iterator[None]:
    """Count what is done within as training."""
    started = time.perf_counter()
    try:
        yield
    finally:
        state.progress.seconds += time.perf_counter() - started
