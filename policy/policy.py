"""The denoising policy: the backbone's network with its adapter, as the mean of a Gaussian reverse kernel.

s_t = (c, t, x_t)    a_t = x_{t-1}    p_theta(x_{t-1} | x_t, c) = N(mean_theta(x_t, t, c), std_t^2 I)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import ModelMixin

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning, PromptTable
from policy.kernel import ReverseKernel
from policy.rollout import rollout
from policy.trajectory import Experience, Trajectory
from policy.update import UpdateConfig, UpdateStats, update_policy


@dataclass(frozen=True)
class Policy:
    """What acts, and what is trained.

    Attributes:
        backbone: whose network acts; once it has an adapter, that alone is trained.
        kernel: the reverse process.
        table: the prompts that it can be asked for.
        guidance_scale: classifier-free guidance, the same in rollouts and updates.
        batch_size: states that go through the network together; it decides about memory and speed alone.
    """

    backbone: Backbone
    kernel: ReverseKernel
    table: PromptTable
    guidance_scale: float
    batch_size: int

    @property
    def denoiser(self) -> ModelMixin:
        """The network."""
        return self.backbone.denoiser

    @property
    def branches(self) -> int:
        """Samples that the network is given for a state."""
        return self.backbone.branches(self.guidance_scale)

    def mean(self, x: torch.Tensor, step: int, conditioning: Conditioning) -> torch.Tensor:
        """Mean of x_{t-1} for states `x` (B, C, H, W) at `step`; float32, with gradient if it is enabled."""
        output = self.backbone.guided_output(
            x,
            self.kernel.timesteps[step],
            conditioning,
            negative=self.table.negative,
            guidance_scale=self.guidance_scale,
        )
        return self.kernel.mean(output, x, step)

    def rollout(
        self,
        prompt_ids: torch.Tensor,
        generator: torch.Generator,
        *,
        storage_dtype: torch.dtype = torch.float32,
        offload: bool = False,
        rows: slice = slice(None),
    ) -> Trajectory:
        """One trajectory for each of `prompt_ids` (B,); see `policy.rollout.rollout`."""
        return rollout(self, prompt_ids, generator, storage_dtype=storage_dtype, offload=offload, rows=rows)

    def update(
        self,
        experiences: list[Experience],
        retain: Trajectory,
        *,
        optimizer: AcceleratedOptimizer,
        accelerator: Accelerator,
        config: UpdateConfig,
        generator: torch.Generator,
    ) -> UpdateStats:
        """Move the adapter along the experiences' advantages; see `policy.update.update_policy`."""
        return update_policy(
            self,
            experiences,
            retain,
            optimizer=optimizer,
            accelerator=accelerator,
            config=config,
            generator=generator,
        )
