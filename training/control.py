"""When to stop, and when to go back: pure decisions from the metrics of an iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from statistics import fmean

import torch

from common.flags import flag


class Verdict(Enum):
    """What is done with an iteration's images: learn from them, return to the last good adapter, or end."""

    KEEP = "keep"
    ROLL_BACK = "roll back"
    STOP = "stop"


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run."""

    max_train_iterations: int = flag(
        40, at_least=1, help="Iterations of rollout and update at most.", may_change=True
    )
    images_per_iteration: int = flag(
        32,
        at_least=1,
        help="Trajectories of forget prompts in an iteration; the processes share them.",
    )
    target_unlearning_accuracy: float = flag(
        0.95,
        at_least=0,
        at_most=2,
        help="Stop when this fraction of recent images shows a recognisable replacement for the concept; above 1, "
        "never.",
        may_change=True,
    )
    patience: int = flag(
        3, at_least=1, help="Number of iterations over which the target must be reached.", may_change=True
    )
    plateau_iterations: int = flag(
        3,
        at_least=0,
        help="Stop, too, when over so many iterations that fraction is above a half and no higher than over as many "
        "before; 0 never does.",
        may_change=True,
    )
    cooldown_updates: int = flag(
        3,
        at_least=0,
        help="Updates at the end of the run in which the learning rate falls to zero, on the last images; they "
        "draw none.",
        may_change=True,
    )
    retain_rollouts: int = flag(
        64, at_least=1, help="Rollouts of the base on retain prompts that the KL is taken on."
    )
    warmup_rollouts: int = flag(
        64,
        at_least=1,
        help="Rollouts of the base on forget prompts: the reward is calibrated on them, and the critic warmed up; "
        "without a critic the first iteration learns from them.",
    )


@dataclass(frozen=True)
class RollbackConfig:
    """Rollback."""

    max_retain_drop: float = flag(
        0.2,
        at_least=0,
        help="Roll back when the retain reward surely (at 95 %) falls below the base's by more than this fraction of "
        "the distance between the concept and its anchors.",
    )
    max_retain_kl: float = flag(
        0.3, at_least=0, help="Roll back when the KL to the base on retain states exceeds this."
    )
    max_step_kl: float = flag(
        3.0,
        at_least=0,
        help="Roll back when one iteration moves the policy by more than this KL; 0.1 to 1 is usual at first.",
    )
    max_brakes: int = flag(
        3,
        at_least=0,
        help="Number of rollbacks to the last good state before the run ends there.",
        may_change=True,
    )


RECOGNISABLE, UNUSUAL = 0.35, 0.05


def recognisable_from(cosines: torch.Tensor, contrast: float) -> float:
    """The cosine with its text from which on an image shows something that has a name: at most 0.35 of the
    contrast below the base's mean, and so low that 95 % of the base's own images reach it.

    Args:
        cosines: (B,) of the base's images of anchors, each with its own prompt.
        contrast: the reward's (`reward.margin.ConceptReward`).
    """
    near = cosines.mean() - RECOGNISABLE * contrast
    return min(near, cosines.quantile(UNUSUAL)).item()


STEEP = 0.02
"""By how much the share of replaced images must have risen."""


@dataclass
class StopSignal:
    """Says stop once the share of replaced images, over the last `patience` iterations, is at the target.

    Attributes:
        plateau: over how many iterations it may stand still; 0 for any number.
        recent: the shares of the last iterations.
    """

    target: float
    patience: int
    plateau: int = 0
    recent: list[float] = field(default_factory=list)

    def update(self, replaced: float) -> bool:
        """`replaced` is the share in [0, 1] of this iteration's images that show something else instead of
        the concept."""
        self.recent = [*self.recent, replaced][-max(self.patience, 2 * self.plateau) :]
        last = self.recent[-self.patience :]
        return len(last) == self.patience and sum(last) / self.patience >= self.target

    @property
    def stands_still(self) -> bool:
        """Whether most images are replaced by now, and no more than a while ago."""
        if self.target > 1 or not self.plateau or len(self.recent) < 2 * self.plateau:
            return False
        before, last = self.recent[-2 * self.plateau : -self.plateau], self.recent[-self.plateau :]
        return 0.5 < fmean(last) < fmean(before) + STEEP


@dataclass(frozen=True)
class RollbackRule:
    """Tells forgetting from destruction, against the base model's own metrics.

    Attributes:
        least_contrast: the base's mean pixel standard deviation on the prompt that has least of it.
        max_retain_drop: how far images of retain prompts may surely fall below the base's own on these
            prompts, in units of the reward's contrast.
        max_kl: bound of the KL to the base on retain states.
        max_step_kl: bound of the KL by which one iteration may move the policy.
        min_contrast: share of that below which images count as blank.
    """

    least_contrast: float
    max_retain_drop: float
    max_kl: float
    max_step_kl: float
    min_contrast: float = 0.25

    def reason(self, retain_drop: float, retain_kl: float, step_kl: float, contrast: float) -> str | None:
        """Why the last update must be taken back, and which flag to turn should it come to that again; or
        None. NaN is too much."""
        if not math.isfinite(step_kl):
            return "the last update had no finite gradient (lower --learning_rate; with --mixed_precision fp16, take bf16)"
        if not step_kl <= self.max_step_kl:
            return f"one iteration moved the policy by a KL of {step_kl:.2f}, bound {self.max_step_kl:g} (lower --learning_rate)"
        if not retain_drop <= self.max_retain_drop:
            return (
                f"the retain reward fell by at least {retain_drop:.2f} of the distance between the concept and its anchors, bound {self.max_retain_drop:g} "
                "(raise --kl_coef, or lower --learning_rate)"
            )
        if not retain_kl <= self.max_kl:
            return f"the KL to the base on retain prompts rose to {retain_kl:.3f}, bound {self.max_kl:g} (raise --kl_coef, or lower --learning_rate)"
        if not contrast >= self.min_contrast * self.least_contrast:
            return (
                f"the images of the concept went blank: contrast {contrast:.3f}, and {self.least_contrast:.3f} where the base has least "
                "(raise --anchor_kl_coef, or lower --learning_rate)"
            )
        return None

    @classmethod
    def of(cls, config: RollbackConfig, least_contrast: float) -> RollbackRule:
        """The rule that settings give; `least_contrast` is the base's."""
        return cls(least_contrast, config.max_retain_drop, config.max_retain_kl, config.max_step_kl)


def adapt_coefficient(coefficient: float, kl: float, target: float) -> float:
    """PPO's rule for a KL penalty (Schulman et al., 2017, section 4): twice as much beyond 1.5 times the
    target, half as much below two thirds."""
    if kl > 1.5 * target:
        return 2 * coefficient
    if kl < target / 1.5:
        return coefficient / 2
    return coefficient
