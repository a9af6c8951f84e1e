"""What every baseline is given: the base, and the prompts that the reward spec resolves for the concept,
which our own training gets too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from pipelines.backbone import Backbone
from pipelines.conditioning import Conditioning
from policy.lora import base_policy
from reward.concept import ConceptSpec

T = TypeVar("T")


class Prompts(StrEnum):
    """What a method that erases a text erases: the concept's own name, as its authors do, or the forget
    prompts of the spec, with their anchors."""

    NAME = "name"
    SPEC = "spec"


@dataclass(frozen=True)
class Task:
    """A base and a concept to erase from it.

    Attributes:
        pipe: the base; the adapter goes onto the network that denoises, or onto a text encoder.
        spec: concept, forget prompts, retain prompts, and for each forget prompt its anchors.
        scheduler: the base's noise schedule under the deterministic sampler, DDIM's or Euler's.
        conditioning: of the empty prompt, of every text of the spec and of the concept's own name.
        rows: the row of each text in it.
    """

    pipe: DiffusionPipeline
    spec: ConceptSpec
    scheduler: SchedulerMixin
    conditioning: Conditioning
    rows: dict[str, int]

    @classmethod
    def build(cls, pipe: DiffusionPipeline, spec: ConceptSpec) -> Task:
        """Encode all texts once.

        Raises:
            ValueError: the text encoder's window is too short for one of them.
        """
        texts = list(
            dict.fromkeys(
                [
                    *spec.concepts,
                    *spec.forget_prompts,
                    *spec.retain_prompts,
                    *(t for row in spec.anchors for t in row),
                ]
            )
        )
        backbone = Backbone.of(pipe)
        conditioning = Conditioning.cat([backbone.encode_no_prompt(), backbone.encode_prompts(texts)])
        return cls(
            pipe,
            spec,
            backbone.deterministic_sampler(),
            conditioning,
            {text: row for row, text in enumerate(["", *texts])},
        )

    @property
    def backbone(self) -> Backbone:
        return Backbone.of(self.pipe)

    @property
    def denoiser(self) -> ModelMixin:
        return self.backbone.denoiser

    def targets(self, prompts: Prompts) -> list[str]:
        """The texts to erase."""
        return self.spec.concepts if prompts == Prompts.NAME else self.spec.forget_prompts

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts."""
        return self.conditioning[torch.tensor([self.rows[prompt] for prompt in prompts])]

    def states(self, text: str) -> torch.Tensor:
        """(L, E) text-encoder states."""
        return self.encode([text]).states[0]

    def output(
        self, x: torch.Tensor, t: torch.Tensor, prompts: Conditioning, guidance: float
    ) -> torch.Tensor:
        """The network's output at x (B, C, H, W) and timesteps t, () or (B,); differentiable."""
        negative = self.encode([""])
        return self.backbone.guided_output(x, t, prompts, negative=negative, guidance_scale=guidance)

    def predict(self, x: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The same for B prompts, without guidance."""
        return self.backbone.output(x, t, self.encode(prompts), 1.0)

    @torch.no_grad()
    def predict_base(
        self, x: torch.Tensor, t: torch.Tensor, *prompts: Sequence[str]
    ) -> tuple[torch.Tensor, ...]:
        """The frozen base's predictions for several lists of B prompts each, in one pass."""
        count, texts = len(prompts), [text for of in prompts for text in of]
        times = t if t.ndim == 0 else t.repeat(count)
        with base_policy(self.denoiser):
            return self.predict(x.repeat(count, 1, 1, 1), times, texts).chunk(count)

    @torch.no_grad()
    def denoise(
        self,
        prompts: Sequence[str],
        steps: int,
        generator: torch.Generator,
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the network as it is now take the first `steps` of its steps from pure noise.

        Returns:
            x (B, C, H, W), and the timestep () at which it stands; after the last step that is 0.
        """
        conditioning = self.encode(prompts)
        backbone = self.backbone
        self.scheduler.set_timesteps(
            num_inference_steps, device=backbone.device, **backbone.timing(num_inference_steps)
        )
        x = torch.randn(len(prompts), *backbone.latent_shape, generator=generator).to(backbone.device)
        for t in self.scheduler.timesteps[:steps]:
            x = self.scheduler.step(self.output(x, t, conditioning, guidance_scale), t, x).prev_sample
        return x, F.pad(self.scheduler.timesteps, (0, 1))[steps]


def draw(items: Sequence[T], count: int, generator: torch.Generator) -> list[T]:
    """`count` of `items`, each as often as any other but for the remainder, which is drawn at random."""
    order = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
    return [*(list(items) * (count // len(items))), *order[: count % len(items)]]
