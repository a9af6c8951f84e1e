"""Advantage estimators: what a denoising step is credited with. One formula, GAE on top of a terminal term;
the named ones are its settings.

    A_t = GAE(gamma, lambda; r, V)_t + w phi(x_0)

    pathwise  gamma 0: not the advantage itself but its gradient in the state that the step led to
        (`critic.pathwise`)
    step   gamma 0, w 1: the change of the potential that the step made, above what the critic expected, and
        how the image turned out
    gae    gamma 1: the trade-off between the next two by lambda
    td     gamma 1, lambda 0: r_t + V(x_{t-1}) - V(x_t)
    mc     gamma 1, lambda 1: the return less the value
    ddpo   the finished image's reward for every step, no critic (Black et al., 2023, arXiv 2305.13301)

Whatever comes out is centred within prompts, so that a per-prompt baseline is part of every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.flags import flag
from critic.advantages import discounted_returns, generalized_advantages, shaped_rewards

ADVANTAGES = ("pathwise", "step", "gae", "td", "mc", "ddpo")
SIGNALS = ("noisy", "terminal")


@dataclass(frozen=True)
class CreditConfig:
    """Credit of denoising steps."""

    advantage: str = flag(
        "pathwise",
        choices=ADVANTAGES,
        help="What a denoising step is credited with: the gradient of the noisy reward in the state it led to "
        "(pathwise), the change it made and how the image turned out (step), generalized advantage estimation "
        "(gae) and its ends (td, mc), or the finished image's reward alone (ddpo).",
    )
    gae_lambda: float = flag(0.9, at_least=0, at_most=1, help="Lambda of --advantage gae.")
    gamma: float | None = flag(
        None,
        at_least=0,
        at_most=1,
        help="Discount over denoising steps. Default: 0 for --advantage pathwise and step, else 1.",
    )
    terminal_weight: float | None = flag(
        None,
        at_least=0,
        help="Weight of the finished image's reward in the advantage. Default: 1 for --advantage step, else 0.",
    )
    reward_signal: str = flag(
        "noisy",
        choices=SIGNALS,
        help="Reward every step with the change of its potential, or the last one alone.",
    )
    advantage_clip: float = flag(
        5.0, at_least=0, help="Clip of the normalized advantages; value gradients are not clipped."
    )

    @property
    def estimator(self) -> Estimator:
        """The estimator that these settings name."""
        return Estimator.named(
            self.advantage,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            terminal_weight=self.terminal_weight,
            signal=self.reward_signal,
        )


@dataclass(frozen=True)
class Estimator:
    """The settings of the formula above.

    Attributes:
        gamma: discount over denoising steps.
        lam: lambda of GAE.
        terminal_weight: w.
        signal: "noisy" rewards every step with the change of its potential; "terminal" only the last one,
            with the finished image's.
        uses_critic: whether values are asked for at all.
        pathwise: whether steps are credited with action gradients rather than with numbers.
    """

    gamma: float
    lam: float
    terminal_weight: float = 0.0
    signal: str = "noisy"
    uses_critic: bool = True
    pathwise: bool = False

    @classmethod
    def named(
        cls,
        name: str,
        *,
        gae_lambda: float = 0.9,
        gamma: float | None = None,
        terminal_weight: float | None = None,
        signal: str = "noisy",
    ) -> Estimator:
        """One of `ADVANTAGES`; what is None is what the name says."""
        default_gamma, lam, default_weight = {
            "pathwise": (0.0, 0.0, 0.0),
            "step": (0.0, 0.0, 1.0),
            "gae": (1.0, gae_lambda, 0.0),
            "td": (1.0, 0.0, 0.0),
            "mc": (1.0, 1.0, 0.0),
            "ddpo": (1.0, 1.0, 0.0),
        }[name]
        gamma = default_gamma if gamma is None else gamma
        return cls(
            gamma,
            lam,
            default_weight if terminal_weight is None else terminal_weight,
            "terminal" if name == "ddpo" else signal,
            uses_critic=gamma > 0 if name == "pathwise" else name != "ddpo",
            pathwise=name == "pathwise",
        )

    def rewards(self, potentials: torch.Tensor) -> torch.Tensor:
        """(B, T+1) -> step rewards (B, T)."""
        if self.signal == "noisy":
            return shaped_rewards(potentials)
        rewards = torch.zeros_like(potentials[:, 1:])
        rewards[:, -1] = potentials[:, -1]
        return rewards

    def returns(self, potentials: torch.Tensor) -> torch.Tensor:
        """(B, T+1) -> what the critic learns (B, T)."""
        return discounted_returns(self.rewards(potentials), self.gamma)

    def action_value(self, potential: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Q of the step that led to a state, up to what does not depend on it: the state's potential (B,)
        and value (B,) -> (B,)."""
        return (potential if self.signal == "noisy" else torch.zeros_like(potential)) + self.gamma * following

    def advantages(self, potentials: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, T+1) potentials, (B, T) values -> (B, T), neither centred nor normalised."""
        return (
            generalized_advantages(self.rewards(potentials), values, self.gamma, self.lam)
            + self.terminal_weight * potentials[:, -1:]
        )
