"""The data that every room speaks: prompts with their embeddings, and trajectories of denoising."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class PromptTable:
    """N prompts and what the UNet needs of them.

    Attributes:
        prompts: N texts.
        embeds: (N, L, E) text-encoder states.
        negative: (1, L, E) states of the empty prompt, for classifier-free guidance.
        forget: (N,) bool, whether the prompt asks for the concept.
    """

    prompts: list[str]
    embeds: torch.Tensor
    negative: torch.Tensor
    forget: torch.Tensor

    @property
    def pooled(self) -> torch.Tensor:
        """(N, E): the states averaged over the tokens."""
        return self.embeds.float().mean(dim=1)


@dataclass
class Trajectory:
    """B denoising trajectories of T steps.

    Attributes:
        latents: (B, T+1, C, H, W); index 0 is pure noise, index T is x_0.
        means: (B, T, C, H, W), the reverse kernel's mean at each step under the policy that acted.
        log_probs: (B, T), float32, averaged over C, H, W.
        timesteps: (T+1,), int64, decreasing; the last is 0.
        prompt_ids: (B,), int64, rows of the prompt table.
    """

    latents: torch.Tensor
    means: torch.Tensor
    log_probs: torch.Tensor
    timesteps: torch.Tensor
    prompt_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_steps(self) -> int:
        return self.log_probs.shape[1]

    def __getitem__(self, index: slice | torch.Tensor) -> Trajectory:
        """The trajectories at `index`."""
        return Trajectory(self.latents[index], self.means[index], self.log_probs[index], self.timesteps, self.prompt_ids[index])

    @staticmethod
    def cat(parts: list[Trajectory]) -> Trajectory:
        """Join batches that share their timesteps."""
        joined = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Trajectory) if f.name != "timesteps"}
        return Trajectory(timesteps=parts[0].timesteps, **joined)


@dataclass
class Experience:
    """B trajectories and what was learnt of them when they were fresh.

    Attributes:
        trajectory: with the log-probabilities of the policy that acted.
        advantages: (B, T).
        anchor_ids: (B,) rows of the prompt table: what each image came nearest to.
        slopes: (B, T, C, H, W), the slopes of the steps' values in the state they led to; None if the advantages are used as they are.
    """

    trajectory: Trajectory
    advantages: torch.Tensor
    anchor_ids: torch.Tensor
    slopes: torch.Tensor | None = None
