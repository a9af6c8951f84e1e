"""The stochastic reverse kernel p(x_{t-1} | x_t, c) = N(mean, std^2 I) of x_t = a_t x_0 + b_t epsilon.

With a^2 + b^2 = 1 it is DDIM's (Song et al., 2021, arXiv 2010.02502, eq. 12 and 16); with a + b = 1 it
samples flow matching: the SDE of Flow-GRPO (Liu et al., 2025, arXiv 2505.05470), whose marginals are the
ODE's, in steps that keep the coefficients a and b (Flow-CPS, arXiv 2509.05952). Without noise they are DDIM's
and Euler's own steps.

All arithmetic is float32, whatever the network computes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from pipelines.backbone import Backbone
from pipelines.noise import ancestral_variances

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


def check_eta(eta: float) -> None:
    """
    Raises:
        ValueError: `eta` is not positive.
    """
    if eta <= 0:
        raise ValueError(f"eta must be positive, a deterministic sampler has no policy gradient (got {eta}).")


def floored(stds: torch.Tensor, noise_variances: torch.Tensor, min_std: float) -> torch.Tensor:
    """Standard deviations (T,) of at least `min_std`, and of no more than the noise that the next states
    (T,) hold in all."""
    return torch.minimum(stds.clamp(min=min_std), noise_variances.sqrt().clamp(min=1e-4))


@dataclass(frozen=True)
class ReverseKernel:
    """A reverse process of T steps.

    Attributes:
        timesteps: (T+1,), what the network is told at each state: int64 of DDIM, float32 of a flow; the last
            is 0 and never asked.
        signals: (T+1,) float32, a of each state.
        noise_variances: (T+1,) float32, b^2 of each state.
        stds: (T,) float32, standard deviation of each step, floored.
        prediction_type: what the network predicts: "epsilon", "v_prediction", "sample", or "flow", which is
            epsilon - x_0.
        num_train_timesteps: length of the schedule the network was trained on.
    """

    timesteps: torch.Tensor
    signals: torch.Tensor
    noise_variances: torch.Tensor
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
        check_eta(eta)
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
        timesteps = torch.cat([timesteps, timesteps.new_zeros(1)])
        return cls(
            timesteps.to(device),
            alphas.sqrt().to(device),
            (1 - alphas).to(device),
            floored(eta * variance.clamp(min=0).sqrt(), 1 - after, min_std).to(device),
            ddim.config.prediction_type,
            ddim.config.num_train_timesteps,
        )

    @classmethod
    def from_flow(
        cls,
        scheduler: FlowMatchEulerDiscreteScheduler,
        eta: float = 1.0,
        min_std: float = 0.01,
        device: torch.device | str = "cpu",
    ) -> ReverseKernel:
        """Build the kernel from a flow-matching scheduler whose timesteps are set, as its pipeline sets them.

        `eta` means what it means for DDIM: 1 is ancestral sampling. Flow-GRPO's noise level a is
        eta = a / sqrt(2) in the limit of small steps, 0.5 for its usual 0.7.

        Raises:
            ValueError: `eta` is not positive.
        """
        check_eta(eta)
        noise = scheduler.sigmas.float()
        return cls(
            torch.cat([scheduler.timesteps.float(), noise.new_zeros(1)]).to(device),
            (1 - noise).to(device),
            noise.square().to(device),
            floored(eta * ancestral_variances(noise).sqrt(), noise[1:].square(), min_std).to(device),
            "flow",
            scheduler.config.num_train_timesteps,
        )

    @classmethod
    def of(cls, backbone: Backbone, num_steps: int, eta: float = 1.0, min_std: float = 0.01) -> ReverseKernel:
        """The kernel of a backbone's own noise schedule, on its device.

        Raises:
            ValueError: as `from_scheduler` and `from_flow`.
        """
        if backbone.is_flow:
            return cls.from_flow(backbone.timed_scheduler(num_steps), eta, min_std, backbone.device)
        return cls.from_scheduler(backbone.pipe.scheduler, num_steps, eta, min_std, backbone.device)

    @property
    def num_steps(self) -> int:
        return len(self.stds)

    @property
    def labels(self) -> list[int]:
        """The timesteps that are acted on, as metrics are named by them."""
        return [round(t) for t in self.timesteps[:-1].tolist()]

    def x0_and_epsilon(
        self, model_output: torch.Tensor, x: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The finished latent and the noise that the network's output at `x` (B, C, H, W) stands for;
        float32."""
        model_output, x = model_output.float(), x.float()
        signal, noise = self.signals[step], self.noise_variances[step].sqrt()
        if self.prediction_type == "epsilon":
            return (x - noise * model_output) / signal, model_output
        if self.prediction_type == "v_prediction":
            return signal * x - noise * model_output, signal * model_output + noise * x
        if self.prediction_type == "flow":
            return x - noise * model_output, x + signal * model_output
        return model_output, (x - signal * model_output) / noise

    def mean(self, model_output: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """Mean of x_{t-1} given x_t = `x` (B, C, H, W) and the network's output there; float32."""
        x0, epsilon = self.x0_and_epsilon(model_output, x, step)
        noise_variance, std = self.noise_variances[step + 1], self.stds[step]
        return self.signals[step + 1] * x0 + (noise_variance - std**2).clamp(min=0).sqrt() * epsilon

    def sensitivity(self) -> torch.Tensor:
        """(T,): by how many standard deviations a step's mean moves when the network's output moves by one.

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
