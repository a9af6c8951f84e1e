"""The end of a run: updates on the last images while the learning rate falls to zero."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from common.errors import Unsound
from critic.credit import credit, values_of
from policy.trajectory import Experience, Trajectory
from policy.update import UpdateConfig, UpdateStats
from training.baseline import Baseline
from training.collect import Batch, collect
from training.optimizer import scaled_rate
from training.run_state import RunState
from training.seeds import Purpose, generator_for
from training.setup import Run
from training.soundness import nonfinite_cause

logger = logging.getLogger(__name__)


def finish(run: Run, state: RunState, base: Baseline, batch: Batch) -> None:
    """End on a sound adapter: cool a good one down, and look at one that was put back after NaN.

    Raises:
        Unsound: the last good adapter draws NaN too.
    """
    if state.nonfinite:
        again = collect(run, state.progress.iteration + 1, base.recognisable)
        if cause := nonfinite_cause(again.metrics):
            raise Unsound(f"With the last good state of the adapter too, {cause}.")
    updates, progress = run.config.schedule.cooldown_updates, state.progress
    if state.reason is not None or not updates:
        return
    logger.info(f"Cooling down: {updates} updates")
    potentials = batch.score.potentials
    experience = credit(
        run.config.credit,
        run.env,
        run.critic,
        batch.trajectory,
        batch.score,
        values=values_of(run.critic, run.env, batch.trajectory, potentials),
        gradient_scale=base.gradient_scale,
    )
    config = replace(run.config.update, kl_coef=progress.kl_coef, target_kl=math.inf)
    with scaled_rate(run.optimizer, run.config.optimizer.share(batch.metrics["shortfall"])):
        cooled = cool_down(run, config, experience, base.retain)
    progress.unet_samples += sum(stats.unet_samples for stats in cooled)
    last = cooled[-1]
    step_kl = math.nan if any(stats.skipped for stats in cooled) else last.step_kl[-1]
    if too_far := state.rollback.reason(0.0, last.retain_kl[-1], step_kl, math.inf):
        logger.warning(f"The cool-down is taken back: {too_far}.")
        run.policy.load_state(state.good)
    else:
        names = ("retain_kl", "anchor_kl", "step_kl")
        batch.metrics |= {f"cooldown_{name}": getattr(last, name)[-1] for name in names}


def cool_down(
    run: Run, config: UpdateConfig, experience: Experience, retain: Trajectory
) -> list[UpdateStats]:
    """Updates on the last trajectories with a learning rate that falls from half of what it is to zero.

    A constant rate leaves the adapter jittering about what it is held to; a rate that falls lets it settle
    there. It bounds the way too, so the updates need no `target_kl`.
    """
    updates, found = run.config.schedule.cooldown_updates, []
    for turn in range(updates):
        with scaled_rate(run.optimizer, (1 - turn / updates) / 2):
            found.append(
                run.policy.update(
                    [experience],
                    retain,
                    optimizer=run.optimizer,
                    accelerator=run.accelerator,
                    config=config,
                    generator=generator_for(run.config.output.seed, Purpose.COOLDOWN, turn),
                )
            )
    return found
