"""The adapter's optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import SchedulerType

from common.flags import flag

SHORTFALL = "shortfall"
"""The schedule that is ours: a step is as long as the way that is left (Polyak, 1987, section 5.3)."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer."""

    learning_rate: float = flag(1e-2, at_least=0, help="Learning rate of the adapter.")
    lr_scheduler: str = flag(
        SHORTFALL,
        choices=(SHORTFALL, *(s.value for s in SchedulerType if s.value != "piecewise_constant")),
        help="Schedule over the iterations; shortfall: in proportion to how much of the way to the anchors an "
        "iteration's images have left.",
    )
    lr_warmup_steps: int = flag(0, at_least=0, help="Iterations over which the learning rate rises.")
    use_8bit_adam: bool = flag(
        False, help="Use bitsandbytes' 8-bit AdamW. A LoRA is small, so this saves little."
    )
    adam_beta1: float = flag(
        0.5,
        at_least=0,
        below=1,
        help="Decay of AdamW's first moment; low, since the right direction changes with every iteration.",
    )
    adam_beta2: float = flag(0.99, at_least=0, below=1, help="Decay of AdamW's second moment.")
    adam_weight_decay: float = flag(1e-4, at_least=0, help="Weight decay of the adapter.")
    adam_epsilon: float = flag(1e-8, at_least=0, help="Epsilon of AdamW.")

    @property
    def schedule(self) -> str:
        """What diffusers is asked for."""
        return "constant_with_warmup" if self.lr_scheduler == SHORTFALL else self.lr_scheduler

    def share(self, shortfall: float) -> float:
        """What an update takes of the scheduled rate, by its images' mean `ConceptReward.shortfall`."""
        return shortfall if self.lr_scheduler == SHORTFALL else 1.0


def create_optimizer(config: OptimizerConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the adapter's parameters."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


@contextmanager
def scaled_rate(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Within, `factor` times the learning rate."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = factor * rate
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
