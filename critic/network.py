"""The value network: a noisy latent, its timestep, its prompt and its potential -> the return still to
come."""

from __future__ import annotations

import torch
from torch import nn

from common.film import FiLMTrunk, shape_text, size_of, timestep_embedding, widths_for
from common.network import Checkpoint, CheckpointError
from reward.predictor import RewardPredictor


class ValueNetwork(Checkpoint):
    """V(x_t, t, c), modulated by FiLM layers on the timestep, the prompt and the potential of the state.

    The last layer starts at zero, so that an untrained critic is the per-prompt baseline alone.

    Args:
        in_channels: channels of the latent.
        sample_size: side of the latent, or [height, width].
        text_dim: length of a prompt's vector (`policy.trajectory.Conditioning.vector`).
        width: channels of the first stage.
        condition_dim: length of the condition vector.
        concepts: what it was trained for, for the record.
        timestep_conditioning: whether it is told the timestep.
        pipeline_class: of the base it was made for, by diffusers' name, for the record; None for one that
            does not say.
    """

    kind = "critic"

    def __init__(
        self,
        in_channels: int,
        sample_size: int | list[int],
        text_dim: int,
        *,
        width: int = 32,
        condition_dim: int = 64,
        concepts: list[str] | None = None,
        timestep_conditioning: bool = True,
        pipeline_class: str | None = None,
    ) -> None:
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "sample_size": sample_size,
            "text_dim": text_dim,
            "width": width,
            "condition_dim": condition_dim,
            "concepts": concepts or [],
            "timestep_conditioning": timestep_conditioning,
            "pipeline_class": pipeline_class,
        }
        self.timestep_conditioning = timestep_conditioning
        self.condition_dim = condition_dim
        self.time = nn.Linear(condition_dim, condition_dim)
        self.text = nn.Linear(text_dim, condition_dim)
        self.potential = nn.Linear(1, condition_dim)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(condition_dim, condition_dim), nn.SiLU())
        self.trunk = FiLMTrunk(in_channels, widths_for(sample_size, width), condition_dim)
        hidden = nn.Linear(self.trunk.out_features + condition_dim, 2 * condition_dim)
        last = nn.Linear(2 * condition_dim, 1)
        self.head = nn.Sequential(hidden, nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @classmethod
    def from_predictor(
        cls,
        predictor: RewardPredictor,
        text_dim: int,
        concepts: list[str] | None = None,
        *,
        timestep_conditioning: bool = True,
        pipeline_class: str | None = None,
    ) -> ValueNetwork:
        """A critic that begins with what a reward predictor has learnt: its trunk and how this is told the
        timestep.

        Prompt and potential change nothing at first, and the last layer is zero as ever.
        """
        shared = {
            name: predictor.config[name] for name in ("in_channels", "sample_size", "width", "condition_dim")
        }
        network = cls(
            text_dim=text_dim,
            concepts=concepts,
            timestep_conditioning=timestep_conditioning,
            pipeline_class=pipeline_class,
            **shared,
        )
        network.trunk.load_state_dict(predictor.trunk.state_dict())
        network.time.load_state_dict(predictor.condition[0].state_dict())
        network.condition[1].load_state_dict(predictor.condition[2].state_dict())
        for layer in (network.text, network.potential):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return network

    def check_fit(self, latent_shape: tuple[int, int, int], text_dim: int, pipeline_class: str) -> None:
        """Refuse to be used with another base than it was made for, as far as the config says.

        Raises:
            CheckpointError: what each side has, and what to do.
        """
        channels, size, width = (self.config[name] for name in ("in_channels", "sample_size", "text_dim"))
        made_for = self.config["pipeline_class"] or pipeline_class
        have, needed = (
            (channels, size, width, made_for),
            (latent_shape[0], size_of(latent_shape), text_dim, pipeline_class),
        )
        if have != needed:
            theirs, ours = (
                f"{shape_text(*of[:2])} latents and texts of width {of[2]} of a {of[3]}"
                for of in (have, needed)
            )
            raise CheckpointError(
                f"The critic was made for {theirs}, the base has {ours}; train one with `python -m critic.train`."
            )

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, potentials: torch.Tensor
    ) -> torch.Tensor:
        """(B, C, H, W), (B,), (B, text_dim), (B,) -> (B,), in units of the target's standard deviation."""
        if not self.timestep_conditioning:
            timesteps = torch.zeros_like(timesteps)
        summed = (
            self.time(timestep_embedding(timesteps, self.condition_dim))
            + self.text(text.float())
            + self.potential(potentials[:, None])
        )
        condition = self.condition(summed)
        return self.head(torch.cat([self.trunk(latents.float(), condition), condition], dim=-1)).squeeze(-1)
