from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from torch.distributions import Normal, kl_divergence

from policy.kernel import ReverseKernel

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Divisors of the schedule only where the spacing needs it: there diffusers' own next timestep is the next of
# the list.
SPACINGS = [
    {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True},
    {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False},
    {"timestep_spacing": "trailing", "set_alpha_to_one": True},
    {
        "timestep_spacing": "trailing",
        "set_alpha_to_one": False,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
    },
]


def ddim(**settings: object) -> DDIMScheduler:
    return DDIMScheduler(**(BETAS | {"clip_sample": False} | settings))


def states(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 4, 8, 8, generator=generator) for _ in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "settings",
    SPACINGS,
    ids=lambda s: f"{s['timestep_spacing']}-{s.get('steps_offset', 0)}-{s['set_alpha_to_one']}",
)
@pytest.mark.parametrize("num_steps", [5, 20])
def test_a_step_is_diffusers_ddim_step_at_eta_1(
    prediction_type: str, settings: dict[str, object], num_steps: int
) -> None:
    scheduler = ddim(prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(num_steps)
    kernel = ReverseKernel.from_scheduler(scheduler, num_steps, min_std=0.0)
    assert kernel.timesteps.tolist() == [*scheduler.timesteps.tolist(), 0]
    output, x, noise = states()
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, t, x, eta=1.0, variance_noise=noise).prev_sample
        torch.testing.assert_close(
            kernel.mean(output, x, step) + kernel.stds[step] * noise, expected, atol=2e-5, rtol=2e-5
        )


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("settings", SPACINGS)
def test_stds_are_the_schedulers_away_from_the_floor(settings: dict[str, object], eta: float) -> None:
    scheduler = ddim(**settings)
    scheduler.set_timesteps(20)
    kernel = ReverseKernel.from_scheduler(scheduler, 20, eta=eta, min_std=0.01)
    expected = (
        torch.stack([scheduler._get_variance(t, t - 50) for t in scheduler.timesteps]).clamp(min=0).sqrt()
        * eta
    )
    free = expected > 0.01
    assert free.sum() >= 15
    torch.testing.assert_close(kernel.stds[free], expected[free], atol=1e-6, rtol=1e-4)
    assert (kernel.stds[~free] > 0).all() and (kernel.stds[~free] <= 0.0101).all()


@pytest.mark.parametrize("num_steps", [7, 16, 30])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_every_step_ends_where_the_next_begins(spacing: str, num_steps: int) -> None:
    scheduler = ddim(timestep_spacing=spacing)
    kernel = ReverseKernel.from_scheduler(scheduler, num_steps)
    assert kernel.num_steps == num_steps and len(kernel.timesteps) == len(kernel.signals) == num_steps + 1
    assert (kernel.timesteps[:-1].diff() < 0).all()
    torch.testing.assert_close(kernel.signals[:-1].square(), scheduler.alphas_cumprod[kernel.timesteps[:-1]])
    assert kernel.noise_variances[-1] == 1 - scheduler.final_alpha_cumprod


def test_the_true_noise_leads_to_the_true_image() -> None:
    """Given the noise that made x_t, the mean of the last step is x_0 itself, and every mean has x_{t-1}'s
    signal."""
    scheduler = ddim(set_alpha_to_one=True)
    kernel = ReverseKernel.from_scheduler(scheduler, 10, min_std=0.0)
    x0, noise, _ = states()
    for step in range(10):
        alpha, after, std = kernel.signals[step] ** 2, kernel.signals[step + 1] ** 2, kernel.stds[step]
        mean = kernel.mean(noise, alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, step)
        torch.testing.assert_close(
            mean, after.sqrt() * x0 + (1 - after - std**2).clamp(min=0).sqrt() * noise, atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(mean, x0, atol=1e-4, rtol=1e-4)


def test_log_prob_is_the_normal_density_averaged() -> None:
    kernel = ReverseKernel.from_scheduler(ddim(), 10)
    output, x, noise = states()
    for step in range(10):
        mean = kernel.mean(output, x, step)
        sample = mean + 2 * kernel.stds[step] * noise
        expected = Normal(mean, kernel.stds[step]).log_prob(sample).mean(dim=(1, 2, 3))
        torch.testing.assert_close(kernel.log_prob(sample, mean, step), expected, atol=1e-4, rtol=1e-4)


def test_kl_is_that_of_two_normals_averaged() -> None:
    kernel = ReverseKernel.from_scheduler(ddim(), 10)
    a, b, _ = states()
    for step in range(10):
        expected = kl_divergence(Normal(a, kernel.stds[step]), Normal(b, kernel.stds[step])).mean(
            dim=(1, 2, 3)
        )
        torch.testing.assert_close(kernel.kl(a, b, step), expected)
        assert torch.equal(kernel.kl(a, a, step), torch.zeros(3))


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_the_last_step_is_finite_where_its_noise_vanishes(set_alpha_to_one: bool, num_steps: int) -> None:
    kernel = ReverseKernel.from_scheduler(
        ddim(timestep_spacing="leading", steps_offset=0, set_alpha_to_one=set_alpha_to_one), num_steps
    )
    output, x, noise = states()
    step = num_steps - 1
    mean = kernel.mean(output, x, step)
    log_prob = kernel.log_prob(mean + kernel.stds[step] * noise, mean, step)
    assert kernel.stds[step] > 0
    assert (
        mean.isfinite().all()
        and log_prob.isfinite().all()
        and kernel.kl(mean, mean + 0.01, step).isfinite().all()
    )


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [4, 10, 20])
def test_a_step_at_zero_terminal_snr_is_diffusers_too(prediction_type: str, num_steps: int) -> None:
    """But the first, where diffusers takes the root of a rounding error, which some processors make
    negative; from pure noise, only x0 counts."""
    scheduler = ddim(prediction_type=prediction_type, **ZERO_SNR)
    scheduler.set_timesteps(num_steps)
    kernel = ReverseKernel.from_scheduler(scheduler, num_steps, min_std=0.0)
    assert kernel.signals[0] == 0 and kernel.timesteps.tolist() == [*scheduler.timesteps.tolist(), 0]
    output, x, noise = states()
    x0 = output if prediction_type == "sample" else -output
    torch.testing.assert_close(kernel.mean(output, x, 0), kernel.signals[1] * x0, atol=1e-3, rtol=0)
    torch.testing.assert_close(kernel.stds[0] ** 2, kernel.noise_variances[1])
    for step, t in list(enumerate(scheduler.timesteps))[1:]:
        expected = scheduler.step(output, t, x, eta=1.0, variance_noise=noise).prev_sample
        torch.testing.assert_close(
            kernel.mean(output, x, step) + kernel.stds[step] * noise, expected, atol=2e-5, rtol=2e-5
        )


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [1, 16, 25, 30, 50, 1000])
def test_zero_terminal_snr_is_finite_at_every_number_of_steps(prediction_type: str, num_steps: int) -> None:
    kernel = ReverseKernel.from_scheduler(ddim(prediction_type=prediction_type, **ZERO_SNR), num_steps)
    output, x, noise = states()
    assert (kernel.stds > 0).all() and kernel.stds.isfinite().all()
    assert (kernel.sensitivity() > 0).all() and kernel.sensitivity().isfinite().all()
    for step in range(0, num_steps, max(1, num_steps // 50)):
        mean = kernel.mean(output, x, step)
        log_prob = kernel.log_prob(mean + kernel.stds[step] * noise, mean, step)
        assert (
            mean.isfinite().all()
            and log_prob.isfinite().all()
            and kernel.kl(mean, mean + 0.01, step).isfinite().all()
        )


def test_what_is_predicted_of_pure_noise_moves_the_next_state() -> None:
    """The first step at zero terminal SNR has a gradient: the mean is the share of the predicted image
    that the next state shows."""
    kernel = ReverseKernel.from_scheduler(ddim(prediction_type="v_prediction", **ZERO_SNR), 10)
    output, x, _ = states()
    torch.testing.assert_close(kernel.mean(output, x, 0), -kernel.signals[1] * output, atol=1e-3, rtol=1e-3)


def test_noise_predicted_of_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="v_prediction"):
        ReverseKernel.from_scheduler(ddim(prediction_type="epsilon", **ZERO_SNR), 10)
    kernel = ReverseKernel.from_scheduler(
        ddim(prediction_type="epsilon", rescale_betas_zero_snr=True, timestep_spacing="leading"), 10
    )
    assert kernel.signals[0] > 0  # leading spacing never asks for the last timestep


REFUSED = {
    "flow matching": (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
    "EDM": (EDMEulerScheduler(), "EDMEulerScheduler"),
    "continuous timesteps": (
        EulerDiscreteScheduler(**BETAS, timestep_type="continuous"),
        "EulerDiscreteScheduler",
    ),
    "another schedule": (DDPMScheduler(beta_schedule="sigmoid", clip_sample=False), "beta_schedule"),
    "another prediction": (
        DPMSolverMultistepScheduler(**BETAS, prediction_type="flow_prediction"),
        "prediction_type",
    ),
    "clipped images": (DDPMScheduler(**BETAS), "clip_sample"),
    "thresholded images": (DPMSolverMultistepScheduler(**BETAS, thresholding=True), "thresholding"),
}


@pytest.mark.parametrize(("scheduler", "names"), REFUSED.values(), ids=REFUSED.keys())
def test_schedulers_that_are_no_stochastic_ddim_of_latents_are_refused(
    scheduler: SchedulerMixin, names: str
) -> None:
    with pytest.raises(ValueError, match=names) as caught:
        ReverseKernel.from_scheduler(scheduler, 10)
    assert "\n" not in str(caught.value)


def test_arithmetic_is_float32_whatever_the_unet_returns() -> None:
    kernel = ReverseKernel.from_scheduler(ddim(), 10)
    output, x, _ = states()
    low = kernel.mean(output.bfloat16(), x.bfloat16(), 3)
    assert low.dtype == torch.float32
    assert torch.equal(low, kernel.mean(output.bfloat16().float(), x.bfloat16().float(), 3))
    assert kernel.log_prob(x.bfloat16(), low, 3).dtype == torch.float32


def test_other_schedulers_of_the_same_noise_give_the_same_kernel() -> None:
    reference = ReverseKernel.from_scheduler(ddim(steps_offset=1, set_alpha_to_one=False), 16)
    kernel = ReverseKernel.from_scheduler(PNDMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False), 16)
    assert torch.equal(kernel.timesteps, reference.timesteps) and torch.equal(kernel.stds, reference.stds)
    euler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    assert torch.equal(ReverseKernel.from_scheduler(euler, 16).timesteps, reference.timesteps)


@pytest.mark.parametrize("eta", [0.0, -1.0])
def test_a_deterministic_sampler_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        ReverseKernel.from_scheduler(ddim(), 10, eta=eta)


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    with pytest.raises(ValueError):
        ReverseKernel.from_scheduler(ddim(), 1001)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_sensitivity_is_how_many_stds_the_mean_moves_with_the_output(prediction_type: str) -> None:
    kernel = ReverseKernel.from_scheduler(
        ddim(prediction_type=prediction_type, steps_offset=1, set_alpha_to_one=False), 8
    )
    output, x, change = states()
    for step in range(8):
        moved = kernel.mean(output + change, x, step) - kernel.mean(output, x, step)
        torch.testing.assert_close(
            moved.abs() / kernel.stds[step], kernel.sensitivity()[step] * change.abs(), rtol=1e-3, atol=1e-3
        )


def test_a_schedule_that_ends_in_a_tiny_step_is_most_sensitive_there() -> None:
    sensitivity = ReverseKernel.from_scheduler(ddim(steps_offset=1, set_alpha_to_one=False), 16).sensitivity()
    assert sensitivity[-2] > 4 * sensitivity[:-2].median()
