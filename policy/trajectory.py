"""The data that every room speaks: prompts with their embeddings, and trajectories of denoising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch


@dataclass
class Trajectory:
    """B denoising trajectories of T steps.

    Latents and means may lie in main memory while the rest is on the GPU (`offloaded`): whoever computes with
    them brings over what it needs.

    Attributes:
        latents: (B, T+1, C, H, W); index 0 is pure noise, index T is x_0.
        means: (B, T, C, H, W), the reverse kernel's mean at each step under the policy that acted.
        log_probs: (B, T), float32, averaged over C, H, W.
        timesteps: (T+1,), decreasing: int64, of a flow float32; the last is 0.
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
        return Trajectory(
            self.latents[index],
            self.means[index],
            self.log_probs[index],
            self.timesteps,
            self.prompt_ids[index],
        )

    def offloaded(self) -> Trajectory:
        """With latents and means, nearly all of it, in main memory; what is small stays where it is."""
        return replace(self, latents=self.latents.cpu(), means=self.means.cpu())

    @classmethod
    def from_state_dict(
        cls, tensors: Mapping[str, torch.Tensor], device: torch.device, offload: bool = False
    ) -> Trajectory:
        """From its fields by name, on `device`; if told to `offload`, what is large stays in main memory."""
        waiting = ("latents", "means") if offload else ()
        return cls(
            **{
                f.name: tensors[f.name] if f.name in waiting else tensors[f.name].to(device)
                for f in fields(cls)
            }
        )

    @staticmethod
    def cat(parts: list[Trajectory]) -> Trajectory:
        """Join batches that share their timesteps."""
        joined = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(Trajectory)
            if f.name != "timesteps"
        }
        return Trajectory(timesteps=parts[0].timesteps, **joined)


@dataclass
class Experience:
    """B trajectories and what was learnt of them when they were fresh.

    Attributes:
        trajectory: with the log-probabilities of the policy that acted.
        advantages: (B, T).
        anchor_ids: (B,) rows of the prompt table: what each image came nearest to.
        action_gradients: (B, T, C, H, W), gradients of the steps' values in the state they led to, on the
            latents' device; None if the advantages are used as they are.
        shortfall: (B,) in [0, 1], how much of the way to its anchors each finished image has left; None is
            all of it.
    """

    trajectory: Trajectory
    advantages: torch.Tensor
    anchor_ids: torch.Tensor
    action_gradients: torch.Tensor | None = None
    shortfall: torch.Tensor | None = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors by name, for a checkpoint."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return own | vars(self.trajectory)

    @classmethod
    def from_state_dict(
        cls, tensors: Mapping[str, torch.Tensor], device: torch.device, offload: bool = False
    ) -> Experience:
        """What `state_dict` returned, on `device`; with `offload` what is large stays in main memory."""
        own = {
            name: tensors[name].to(device)
            for name in ("advantages", "anchor_ids", "shortfall")
            if name in tensors
        }
        gradients = tensors.get("action_gradients")
        if gradients is not None and not offload:
            gradients = gradients.to(device)
        return cls(Trajectory.from_state_dict(tensors, device, offload), **own, action_gradients=gradients)
