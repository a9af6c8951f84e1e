"""The adapter's optimizer and its schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import SchedulerType

from common.flags import flag


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer."""

    learning_rate: float = flag(1e-2, at_least=0, help="Learning rate of the adapter.")
    lr_scheduler: str = flag(
        "constant",
        choices=tuple(s.value for s in SchedulerType if s.value != "piecewise_constant"),
        help="Schedule over the iterations.",
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
