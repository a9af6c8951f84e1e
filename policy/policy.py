"""The denoising policy: the backbone's network with its adapter, as the mean of a Gaussian reverse kernel.

s_t = (c, t, x_t)    a_t = x_{t-1}    p_theta(x_{t-1} | x_t, c) = N(mean_theta(x_t, t, c), std_t^2 I)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import ModelMixin
from transformers import PreTrainedModel

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning, PromptTable
from policy.kernel import ReverseKernel
from policy.lora import ADAPTER, base_policy, load_lora_state, lora_state
from policy.rollout import rollout
from policy.trajectory import Experience, Trajectory
from policy.update import UpdateConfig, UpdateStats, update_policy


@dataclass
class Policy:
    """What acts, and what is trained.

    Attributes:
        backbone: whose network acts; once it has an adapter, that alone is trained.
        kernel: the reverse process.
        table: the prompts that it can be asked for, as the base's text encoders read them.
        guidance_scale: classifier-free guidance, the same in rollouts and updates.
        batch_size: states that go through the network together; it decides about memory and speed alone.
        adapted: the prompts as its own text encoders read them, where these are adapted.
    """

    backbone: Backbone
    kernel: ReverseKernel
    table: PromptTable
    guidance_scale: float
    batch_size: int
    adapted: PromptTable | None = None

    @property
    def current(self) -> PromptTable:
        """The prompts as the text encoders read them now."""
        return self.table if self.adapted is None else self.adapted

    @property
    def denoiser(self) -> ModelMixin:
        """The network."""
        return self.backbone.denoiser

    @property
    def branches(self) -> int:
        """Samples that the network is given for a state."""
        return self.backbone.branches(self.guidance_scale)

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        """The text encoders that carry an adapter, by the pipeline's name."""
        return {
            name: encoder
            for name, encoder in self.backbone.adaptable_encoders.items()
            if ADAPTER in getattr(encoder, "peft_config", {})
        }

    @property
    def networks(self) -> dict[str, ModelMixin | PreTrainedModel]:
        """All that carries an adapter, by the pipeline's name."""
        return {self.backbone.component: self.denoiser, **self.encoders}

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within, the policy is the base: adapters are disabled, prompts are read as the base reads them."""
        adapted, self.adapted = self.adapted, None
        try:
            with base_policy(*self.networks.values()):
                yield
        finally:
            self.adapted = adapted

    def state(self) -> dict[str, torch.Tensor]:
        """A detached copy of the adapter by component and name, on the CPU."""
        return {
            f"{component}.{name}": tensor
            for component, network in self.networks.items()
            for name, tensor in lora_state(network).items()
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put a copy made by `state` back, bit for bit, and read the prompts with it.

        Raises:
            ValueError: the state is of other modules or another rank.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {component: {} for component in self.networks}
        for key, tensor in state.items():
            component, name = key.split(".", 1)
            parts.setdefault(component, {})[name] = tensor
        for component, part in parts.items():
            load_lora_state(getattr(self.backbone.pipe, component), part)
        self.read_prompts()

    def read_prompts(self) -> None:
        """Read the prompts with the text encoders as they are now."""
        if self.encoders:
            self.adapted = self.backbone.prompt_table(self.table.prompts, self.table.forget)

    def mean(self, x: torch.Tensor, step: int, conditioning: Conditioning) -> torch.Tensor:
        """Mean of x_{t-1} for states `x` (B, C, H, W) at `step`; float32, with gradient if it is enabled."""
        output = self.backbone.guided_output(
            x,
            self.kernel.timesteps[step],
            conditioning,
            negative=self.current.negative,
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
