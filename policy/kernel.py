"""The stochastic DDIM reverse kernel p(x_{t-1} | x_t, c) = N(mean, std^2 I) (Song et al., 2021, arXiv
2010.02502, eq. 12 and 16).

All arithmetic is float32, whatever the UNet computes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, SchedulerMixin

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def to_ddim(scheduler: SchedulerMixin) -> DDIMScheduler:
    """The DDIM sampler of a scheduler's noise schedule.

    Raises:
        ValueError: it has none that stochastic DDIM can sample, or it clips x_0, which the kernel does not.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if "beta_schedule" not in config or config.get("timestep_type") == "continuous":
        raise ValueError(
            f"The base's scheduler {name} has no noise schedule of discrete betas; the schedulers of Stable Diffusion 1.x, 2.x and SDXL have."
        )
    if config.get("trained_betas") is None and config["beta_schedule"] not in BETA_SCHEDULES:
        raise ValueError(
            f"The scheduler's beta_schedule {config['beta_schedule']!r} is not supported; {', '.join(BETA_SCHEDULES)} are."
        )
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise ValueError(
            f"The scheduler's prediction_type {config['prediction_type']!r} is not supported; {', '.join(PREDICTION_TYPES)} are."
        )
    for setting in ("clip_sample", "thresholding"):
        if config.get(setting):
            raise ValueError(
                f"The base's scheduler {name} has {setting} switched on, which is meant for pixels and spoils latents; "
                f"set {setting} to false in its scheduler/scheduler_config.json."
            )
    return DDIMScheduler.from_config(config, clip_sample=False)


@dataclass(frozen=True)
class ReverseKernel:
    """A reverse process of T steps.

    Attributes:
        timesteps: (T+1,) int64, what the UNet is told at each state; the last is 0 and never asked.
        alphas_cumprod: (T+1,) float32, alpha-bar of each state.
        stds: (T,) float32, standard deviation of each step, floored.
        prediction_type: what the UNet predicts: "epsilon", "v_prediction" or "sample".
        num_train_timesteps: length of the schedule the UNet was trained on.
    """

    timesteps: torch.Tensor
    alphas_cumprod: torch.Tensor
    stds: torch.Tensor
    prediction_type: str
    num_train_timesteps: int

    @classmethod
    def from_scheduler(
        cls,
        scheduler: SchedulerMixin,
        num_steps: int,
        eta: float = 1.0,
        min_std: float = 0.01,
        device: torch.device | str = "cpu",
    ) -> ReverseKernel:
        """Build the kernel from the noise schedule of any Stable Diffusion scheduler.

        `eta` scales the noise: 1 is ancestral sampling, and 0, which has no density, is refused.
        `min_std` keeps the log-probability of nearly deterministic steps finite.

        Raises:
            ValueError: `eta` is not positive, there are too many steps, the scheduler is none that `to_ddim`
                can read, or the first state is pure noise (zero terminal SNR) and the UNet predicts that
                noise, which says nothing of the image.
        """
        if eta <= 0:
            raise ValueError(
                f"eta must be positive, a deterministic sampler has no policy gradient (got {eta})."
            )
        ddim = to_ddim(scheduler)
        ddim.set_timesteps(num_steps)
        timesteps = ddim.timesteps.long()
        alphas = torch.cat([ddim.alphas_cumprod[timesteps], ddim.final_alpha_cumprod.reshape(1)]).float()
        if alphas[0] == 0 and ddim.config.prediction_type == "epsilon":
            raise ValueError(
                "The scheduler begins at zero terminal SNR (rescale_betas_zero_snr) and predicts epsilon, which is undefined there; "
                "a base that was trained for zero terminal SNR has the prediction_type v_prediction."
            )
        now, after = alphas[:-1], alphas[1:]
        variance = (1 - after) / (1 - now) * (1 - now / after)
        stds = (eta * variance.clamp(min=0).sqrt()).clamp(min=min_std)
        # The floor must not exceed the noise that the next state holds in all.
        stds = torch.minimum(stds, (1 - after).sqrt().clamp(min=1e-4))
        timesteps = torch.cat([timesteps, timesteps.new_zeros(1)])
        return cls(
            timesteps.to(device),
            alphas.to(device),
            stds.to(device),
            ddim.config.prediction_type,
            ddim.config.num_train_timesteps,
        )

    @property
    def num_steps(self) -> int:
        return len(self.stds)

    def x0_and_epsilon(
        self, model_output: torch.Tensor, x: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The finished latent and the noise that the UNet's output at `x` (B, C, H, W) stands for;
        float32."""
        model_output, x = model_output.float(), x.float()
        alpha = self.alphas_cumprod[step]
        if self.prediction_type == "epsilon":
            return (x - (1 - alpha).sqrt() * model_output) / alpha.sqrt(), model_output
        if self.prediction_type == "v_prediction":
            return alpha.sqrt() * x - (1 - alpha).sqrt() * model_output, alpha.sqrt() * model_output + (
                1 - alpha
            ).sqrt() * x
        return model_output, (x - alpha.sqrt() * model_output) / (1 - alpha).sqrt()

    def mean(self, model_output: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """Mean of x_{t-1} given x_t = `x` (B, C, H, W) and the UNet's output there; float32."""
        x0, epsilon = self.x0_and_epsilon(model_output, x, step)
        alpha_next, std = self.alphas_cumprod[step + 1], self.stds[step]
        return alpha_next.sqrt() * x0 + (1 - alpha_next - std**2).clamp(min=0).sqrt() * epsilon

    def sensitivity(self) -> torch.Tensor:
        """How many standard deviations the mean of each step moves when the UNet's output moves by one: (T,).

        The gradient of a step's log-probability grows with it. Where a schedule ends in tiny steps it is many
        times larger than elsewhere, and these steps would drown all others in noise.
        """
        zero = self.stds.new_zeros(1, 1, 1, 1)
        slopes = [
            self.mean(zero + 1, zero, step) - self.mean(zero, zero, step) for step in range(self.num_steps)
        ]
        return torch.cat(slopes).flatten().abs() / self.stds

    def log_prob(self, sample: torch.Tensor, mean: torch.Tensor, step: int) -> torch.Tensor:
        """Log-density of `sample` (B, C, H, W) averaged over C, H, W -> (B,), float32."""
        std = self.stds[step]
        log_density = -((sample.float() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return log_density.mean(dim=(1, 2, 3))

    def kl(self, mean: torch.Tensor, reference_mean: torch.Tensor, step: int) -> torch.Tensor:
        """KL divergence between two kernels of the same std, averaged over C, H, W -> (B,)."""
        return ((mean - reference_mean) ** 2).mean(dim=(1, 2, 3)) / (2 * self.stds[step] ** 2)
