"""What the base is before anything is learnt: what the reward is calibrated by, and retention is held to."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import torch

from common.errors import Unsound
from critic.credit import value_gradients, warm_up
from critic.pathwise import gradient_scale
from environment.environment import Environment, ForgetScore
from policy.trajectory import Trajectory
from training.collect import Batch
from training.control import recognisable_from
from training.metrics import image_metrics
from training.seeds import Purpose, generator_for
from training.setup import Run
from training.soundness import nonfinite_cause

logger = logging.getLogger(__name__)

ANCHOR_SHARE = 0.25
"""Of the rollouts that are kept, those of anchors: their images tell when the concept has become one."""
OTHER_THINGS = 0.1
"""Fraction of the base's images of a concept from which on what else they show is worth a warning."""


@dataclass
class Baseline:
    """What the base is.

    Attributes:
        retain: its trajectories of retain prompts, and of other names in the concept's place, which the KL
            holds to.
        recognisable: the cosine with its nearest anchor from which on an image counts as showing something.
        least_contrast: what the plainest of its prompts has, as a mean over that prompt's images; a concept
            may be replaced by that.
        acted: its trajectories of forget prompts; without a critic the first iteration learns from these.
        gradient_scale: (T,) the scale of its value gradients if these are asked for.
        drawn: images that were drawn for all this.
    """

    retain: Trajectory
    recognisable: float
    least_contrast: float
    acted: Batch
    gradient_scale: torch.Tensor | None
    drawn: int


def measure_base(run: Run) -> Baseline:
    """Roll the base out, calibrate the reward on its images and warm the critic up.

    Raises:
        Unsound: nothing can be learnt from the base.
    """
    with run.policy.base():
        return _measure(run)


def _measure(run: Run) -> Baseline:
    env, config, seed = run.env, run.config, run.config.output.seed
    estimator = config.credit.estimator
    generator, rollouts = generator_for(seed, Purpose.RETAIN), config.schedule.retain_rollouts
    of_anchors = int(ANCHOR_SHARE * rollouts)
    ids = [
        env.draw(env.retain_ids, rollouts - of_anchors, generator),
        env.draw(env.anchor_ids, of_anchors, generator),
    ]
    retain = env.collect(torch.cat(ids), generator)
    generator = generator_for(seed, Purpose.WARMUP)
    forget = env.collect(env.draw(env.forget_ids, config.schedule.warmup_rollouts, generator), generator)
    forget_images, retain_images = env.calibrate(forget, retain)
    score, check = env.score_forget(forget, forget_images), env.score_retain(retain, retain_images)
    cause = nonfinite_cause(image_metrics(env, score, check, recognisable=0.0))
    if cause:
        raise Unsound(f"Nothing can be learnt from the base: {cause}.")
    warm_up(
        run.critic,
        env,
        forget,
        score.potentials,
        config=config.critic,
        estimator=estimator,
        generator=generator,
    )
    warn_of_other_things(env, score)
    shown = ((forget, forget_images), (retain, retain_images))
    least_contrast = min(
        images.contrast[rollouts.prompt_ids == i].mean().item()
        for rollouts, images in shown
        for i in rollouts.prompt_ids.unique()
    )
    recognisable = recognisable_from(check.reward[-of_anchors:], env.reward.contrast)
    scale = None
    if estimator.pathwise:
        scale = gradient_scale(value_gradients(estimator, env, run.critic, forget), env.kernel.stds)
    metrics = image_metrics(env, score, check, recognisable)
    if scale is not None and not scale.isfinite().all():
        raise Unsound(
            "The gradients of the reward predictor or the critic are NaN or infinite; make it anew, or choose "
            "another --advantage."
        )
    others, others_drawn = draw_others(run)
    return Baseline(
        Trajectory.cat([retain, *others]),
        recognisable,
        least_contrast,
        Batch(forget, score, metrics),
        scale,
        drawn=len(forget) + len(retain) + others_drawn,
    )


def draw_others(run: Run) -> tuple[list[Trajectory], int]:
    """The base's trajectories of other names in the concept's place, without those that show the concept, as
    none or one batch; and how many were drawn."""
    env, ids = run.env, run.env.vocabulary_ids
    if len(ids) < run.accelerator.num_processes:
        return [], 0
    drawn = env.collect(ids, generator_for(run.config.output.seed, Purpose.VOCABULARY))
    shows = env.shows_concept(drawn)
    if shows.any():
        texts = ", ".join(f'"{env.table.prompts[i]}"' for i in ids[shows].tolist())
        logger.info(f"  Drawn as the concept, so not kept = {texts}")
    return [drawn[~shows]], len(ids)


def warn_of_other_things(env: Environment, base: ForgetScore) -> None:
    """Say what else the base draws for the concept's prompts, if it often does: an ambiguous word, or one
    that it does not know."""
    seen = Counter(env.table.prompts[i] for i in base.anchor_ids[base.forgotten].tolist())
    for text, count in seen.most_common(3):
        if count >= OTHER_THINGS * len(base.forgotten):
            logger.warning(
                f"{100 * count / len(base.forgotten):.0f} % of what the base draws for the concept looks rather "
                f'like "{text}". If that is to go too, name it in --concept; if not, say what you mean in '
                "--forget_prompts FILE."
            )
