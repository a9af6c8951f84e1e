"""More noise on the way than the sampler asks for: an erased concept may lie beside the path that the erasure
bent (Lu et al., 2025, https://arxiv.org/abs/2505.17013, "noise-based probing").

A step of DDIM (Song et al., 2021, https://arxiv.org/abs/2010.02502, eq. 12 and 16) is

    x_s = sqrt(alpha_s) x0(x_t) + sqrt(1 - alpha_s - std^2) epsilon(x_t) + std z,        z ~ N(0, I),
    std = eta sqrt((1 - alpha_s) / (1 - alpha_t)) sqrt(1 - alpha_t / alpha_s),

where alpha is the cumulative product, and s the step after t. eta = 0 is deterministic and 1 is ancestral
sampling. All noise of x_s together has the variance 1 - alpha_s that the model was trained on, whatever eta,
but only while std^2 <= 1 - alpha_s. That always holds up to eta = 1. Beyond, the root becomes that of a
negative number, first where a step ends with little noise, and diffusers' scheduler draws NaN.

Here std is at most sqrt(1 - alpha_s). There the step forgets the noise of x_t altogether and makes x0 noisy
anew: the end of the family, and nothing lies beyond it. So the base still draws, and what comes back is due
to the path and not to noise that no model was trained on.

The authors' code takes the root of the absolute value instead. Where std^2 > 1 - alpha_s, that adds up to a
variance of 2 std^2 - (1 - alpha_s), more than the model is told. It also scales z by up to 1.04, and keeps
the best of 24 images of each prompt by their CLIP score. Here each value of eta is a row, and every image
counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin

from evaluation.probes.rows import Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from pipelines.backbone import Backbone
from pipelines.flow import FlowBackbone

ROUNDING = 1e-6
"""How much less than all noise is new at most, relatively: rounding must not make the rest negative."""


class NoisyDDIM(DDIMScheduler):
    """DDIM with any eta; to be asked for steps of eta 1.

    Attributes:
        noise: eta.
    """

    noise = 1.0

    def _get_variance(self, timestep: int, prev_timestep: int) -> torch.Tensor:
        after = self.alphas_cumprod[prev_timestep] if prev_timestep >= 0 else self.final_alpha_cumprod
        wanted = self.noise**2 * super()._get_variance(timestep, prev_timestep)
        return torch.minimum(wanted, (1 - after) * (1 - ROUNDING))


def noisy(pipe: DiffusionPipeline, eta: float) -> SchedulerMixin:
    """The pipeline's noise schedule under a stochastic sampler of this eta."""
    backbone = Backbone.of(pipe)
    if isinstance(backbone, FlowBackbone):
        return backbone.noisy_sampler(eta)
    scheduler = NoisyDDIM.from_config(backbone.deterministic_sampler().config)
    scheduler.noise = eta
    return scheduler


def run(subject: Subject, settings: Settings) -> list[Row]:
    """A row for each eta: plain prompts from the same noise, and with the same noise added, on both sides."""
    # A flow's pipeline takes no eta; its sampler has it.
    steps: dict[str, Any] = {} if subject.backbone.is_flow else {"eta": 1.0}
    return [
        subject.compare(
            f"noise on the way, eta {eta:g}",
            subject.plain,
            settings.num_images,
            sampler=partial(noisy, eta=eta),
            **steps,
        )
        for eta in settings.noise_etas
    ]
