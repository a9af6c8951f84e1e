"""Ways to predict from a noisy latent what the teacher will say of the finished image.

A scorer maps states (B, C, H, W) at a step of the reverse process, and their prompts (B,), to embeddings
(B, D).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipelines.backbone import Backbone
from policy.kernel import ReverseKernel
from policy.policy import Policy
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

Scorer = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]

OURS, BLIND, CLEAN = "noise-conditioned predictor", "timestep-blind twin", "clean-only twin"
NOISY_DECODE, X0_PROMPT, X0_ALONE = (
    "CLIP on the decoded noisy latent",
    "CLIP on the decoded x0-hat",
    "CLIP on the decoded x0-hat, prompt unknown",
)


@dataclass(frozen=True)
class Process:
    """What states come from: the policy, and the backbone that decodes them."""

    backbone: Backbone
    policy: Policy


def predictor_scorer(predictor: RewardPredictor, kernel: ReverseKernel) -> Scorer:
    """The predictor on the latent and its timestep."""
    return lambda x, step, rows: predictor(x, kernel.timesteps[step].expand(len(x)))


def noisy_decode_scorer(process: Process, teacher: Teacher) -> Scorer:
    """The teacher on the noisy latent, decoded as it is."""
    return lambda x, step, rows: teacher.encode_images(process.backbone.decode(x))


def x0_scorer(process: Process, teacher: Teacher, know_prompt: bool) -> Scorer:
    """The teacher on the decoded one-step estimate of the finished latent, under the rollout's guidance or
    for the empty prompt."""
    backbone, kernel, table = process.backbone, process.policy.kernel, process.policy.table

    def score(x: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
        prompts = table.conditioning[rows] if know_prompt else table.negative.expand(len(x))
        output = backbone.guided_output(
            x,
            kernel.timesteps[step],
            prompts,
            negative=table.negative,
            guidance_scale=process.policy.guidance_scale if know_prompt else 1.0,
        )
        return teacher.encode_images(backbone.decode(kernel.x0_and_epsilon(output, x, step)[0]))

    return score


@torch.no_grad()
def score_states(
    scorer: Scorer, states: torch.Tensor, step: int, rows: torch.Tensor, *, batch_size: int
) -> torch.Tensor:
    """(N, C, H, W) states at one step, (N,) rows of their prompts -> (N, D) on the CPU."""
    parts = zip(states.split(batch_size), rows.split(batch_size), strict=True)
    return torch.cat([scorer(x, step, of).float().cpu() for x, of in parts])


@torch.no_grad()
def milliseconds_per_latent(
    scorer: Scorer, states: torch.Tensor, step: int, rows: torch.Tensor, *, repeats: int = 5
) -> float:
    """Median time of a batch (B, C, H, W) divided by its length, after one warm-up batch."""
    times = []
    for _ in range(repeats + 1):
        _finish(states.device)
        started = time.perf_counter()
        scorer(states, step, rows)
        _finish(states.device)
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times[1:])[repeats // 2] / len(states)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
