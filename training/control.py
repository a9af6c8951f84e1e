"""When to stop, and when to go back: pure decisions from the figures of an iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

RECOGNISABLE = 0.35
"""An image shows something that has a name if its best cosine is at most this far below the base's own on
retain prompts, in units of the reward's contrast."""


@dataclass
class StopSignal:
    """Says stop once the share of replaced images, over the last `patience` iterations, is at the target."""

    target: float
    patience: int
    recent: list[float] = field(default_factory=list)

    def update(self, replaced: float) -> bool:
        """`replaced` is the share in [0, 1] of this iteration's images that show something else instead of
        the concept."""
        self.recent = [*self.recent, replaced][-self.patience :]
        return len(self.recent) == self.patience and sum(self.recent) / self.patience >= self.target


@dataclass(frozen=True)
class Brake:
    """Tells forgetting from destruction, against the base model's own figures.

    Attributes:
        least_contrast: the base's mean pixel standard deviation on the prompt that has least of it.
        max_retain_drop: how far images of retain prompts may fall below the base's own on these prompts, in
            units of the reward's contrast.
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
        None. What is no number is too much."""
        if not math.isfinite(step_kl):
            return "the last update had no finite gradient (lower --learning_rate; with --mixed_precision fp16, take bf16)"
        if not step_kl <= self.max_step_kl:
            return f"one iteration moved the policy by a KL of {step_kl:.2f}, bound {self.max_step_kl:g} (lower --learning_rate)"
        if not retain_drop <= self.max_retain_drop:
            return (
                f"the retain reward fell by {retain_drop:.2f} of the distance between the concept and its anchors, bound {self.max_retain_drop:g} "
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


def adapt_coefficient(coefficient: float, kl: float, target: float) -> float:
    """PPO's rule for a KL penalty (Schulman et al., 2017, section 4): twice as much beyond 1.5 times the
    target, half as much below two thirds."""
    if kl > 1.5 * target:
        return 2 * coefficient
    if kl < target / 1.5:
        return coefficient / 2
    return coefficient
