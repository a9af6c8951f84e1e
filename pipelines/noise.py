"""How noisy a latent is at each timestep, and what the network is trained to say of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = signal_t x_0 + noise_t epsilon, at N timesteps from 0 on.

    Attributes:
        signals, noises: (N,) float32.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow".
    """

    signals: torch.Tensor
    noises: torch.Tensor
    prediction_type: str

    @classmethod
    def of(cls, scheduler: SchedulerMixin) -> NoiseSchedule:
        """That of a pipeline's scheduler. A flow's has a timestep more, at which there is nothing but
        noise."""
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            noises = torch.linspace(0, 1, scheduler.config.num_train_timesteps + 1)
            return cls(1 - noises, noises, "flow")
        ddim = DDIMScheduler.from_config(scheduler.config)
        alphas = ddim.alphas_cumprod
        return cls(alphas.sqrt(), (1 - alphas).sqrt(), ddim.config.prediction_type)

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def last(self) -> int:
        """The noisiest timestep."""
        return len(self) - 1

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) and noise of their shape, at (B,) int64 timesteps."""
        signal, level = self._at(x0, timesteps)
        return signal * x0 + level * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the network is to say of `add_noise` of the same."""
        signal, level = self._at(x0, timesteps)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return signal * noise - level * x0
        return noise - x0 if self.prediction_type == "flow" else x0

    def _at(self, x: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = timesteps.to(self.signals.device)
        signal, level = (table[rows].to(x)[:, None, None, None] for table in (self.signals, self.noises))
        return signal, level


def ancestral_variances(levels: torch.Tensor) -> torch.Tensor:
    """(T,) variances of the new noise in the steps of ancestral sampling between the noise levels (T+1,) of a
    flow."""
    signals, before, after = 1 - levels, levels[:-1], levels[1:]
    kept = (signals[:-1] * after) / (signals[1:] * before)
    return after.square() * (1 - kept.square())
