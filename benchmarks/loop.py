"""The training script's loop, for benchmarks that watch its parts from within the process.

It learns what the script learns, bit for bit, and writes its diagnostics and checkpoints; it draws no
previews, and cannot be interrupted. `stage` is entered around what has no object of its own to be watched on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from critic.credit import credit, observe, values_of
from critic.credit import learn as learn_critic
from training.baseline import Baseline
from training.collect import Batch, collect
from training.control import Verdict
from training.cooldown import finish
from training.metrics import advantage_metrics, critic_metrics, update_metrics
from training.optimizer import scaled_rate
from training.reporter import Reporter
from training.run_state import RunState
from training.seeds import Purpose, generator_for
from training.setup import Run

CREDIT, CRITIC = "value gradients of the reward predictor", "critic"
"""The stages."""

Stage = Callable[[str], AbstractContextManager[object]]


def unwatched(stage: str) -> AbstractContextManager[object]:
    """For a loop that nobody watches."""
    return nullcontext()


def learn(run: Run, base: Baseline, state: RunState, *, stage: Stage = unwatched) -> None:
    """Iterate until the run ends."""
    run.config.output.output_dir.mkdir(parents=True, exist_ok=True)
    report, verdict = Reporter(run, state, before=[]), Verdict.KEEP
    while verdict is not Verdict.STOP:
        started = time.perf_counter()
        batch = roll_out(run, base, state)
        verdict = state.judge(batch.metrics)
        if verdict is Verdict.STOP:
            finish(run, state, base, batch)
        else:
            values = values_of(run.critic, run.env, batch.trajectory, batch.score.potentials)
            if run.critic.kind != "none":
                returns = run.config.credit.estimator.returns(batch.score.potentials)
                batch.metrics |= critic_metrics(run.env, values, returns, batch.trajectory.prompt_ids)
            if verdict is Verdict.KEEP:
                update_policy(run, base, state, batch, values, stage=stage)
            with stage(CRITIC):
                update_critic(run, state, batch)
        state.progress.seconds += time.perf_counter() - started
        if verdict is not Verdict.STOP:
            report.iteration(batch)
    report.end(batch)


def roll_out(run: Run, base: Baseline, state: RunState) -> Batch:
    """Trajectories of the policy; without a critic the base's are the first."""
    progress, config = state.progress, run.config
    if state.policy_is_base and run.critic.kind == "none":
        return base.acted
    count = config.schedule.images_per_iteration + config.update.retain_batch_size
    progress.images += count
    progress.unet_samples += run.policy.branches * run.env.kernel.num_steps * count
    return collect(run, progress.iteration, base.recognisable)


def update_policy(
    run: Run, base: Baseline, state: RunState, batch: Batch, values: torch.Tensor, *, stage: Stage
) -> None:
    """Credit the steps of a batch, given the values (B, T) of its states, and move the policy by that."""
    progress = state.progress
    with stage(CREDIT):
        experience = credit(
            run.config.credit,
            run.env,
            run.critic,
            batch.trajectory,
            batch.score,
            values=values,
            gradient_scale=base.gradient_scale,
        )
    with scaled_rate(run.optimizer, run.config.optimizer.share(batch.metrics["shortfall"])):
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
    """Let the critic see what became of a batch, and learn."""
    config = run.config
    if not state.nonfinite:
        potentials, estimator = batch.score.potentials, config.credit.estimator
        observe(run.critic, run.env, batch.trajectory, potentials, estimator=estimator)
    generator = generator_for(config.output.seed, Purpose.CRITIC, state.progress.iteration)
    batch.metrics |= learn_critic(run.critic, config.critic, generator)
