"""The critic at work: per-prompt baseline + value network, with its optimizer and the transitions it
learns from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common.checkpoints import entries_of, load_optimizer_tensors, numbered, optimizer_tensors, under
from common.flags import by_name, flag
from critic.advantages import centre_within
from critic.network import ValueNetwork
from policy.trajectory import Trajectory

CRITICS = ("film", "timestep_blind", "clean_only", "none")
STATISTICS = ("baseline", "seen", "scale", "trust")
BATCH_NUMBERS = 2**19
"""Latent numbers that are valued together: 2048 states of 4x8x8, 32 of 4x64x64."""


@dataclass(frozen=True)
class CriticConfig:
    """Critic."""

    critic_model_name_or_path: str | None = flag(
        None,
        help="Critic made by `python -m critic.train`. Default: one is warmed up in the run.",
        published=by_name,
    )
    critic_type: str = flag("film", choices=CRITICS, help="The critic, or a lesser one, for ablation.")
    critic_learning_rate: float = flag(1e-3, above=0, help="Learning rate of the critic.")
    critic_warmup_steps: int = flag(300, at_least=0, help="Optimizer steps of the warm-up.")
    critic_steps: int = flag(30, at_least=0, help="Optimizer steps of the critic after every iteration.")
    critic_batch_size: int = flag(256, at_least=1, help="States in an optimizer step of the critic.")
    critic_buffer_iterations: int = flag(4, at_least=1, help="Iterations the critic remembers.")


class Critic:
    """V(x_t, t, c) = baseline(c, t) + trust(t) std(t) network(x_t, t, c, phi), fitted to Monte-Carlo returns.

    The baseline is the running mean of the returns of each prompt at each step; the network explains what is
    left. Its trust is the control-variate coefficient Cov[G, V] / Var[V] in [0, 1], measured on trajectories
    before the network learns from them: where it knows no more than the prompt it is left out rather than
    adding its own noise.

    `kind` is one of `CRITICS`, for ablation: the critic as it is ("film"), one that is not told the timestep
        (the network's own setting), one
    that learns from the last state alone, where hardly any noise is left ("clean_only"), and the per-prompt
    baseline alone ("none").
    """

    def __init__(
        self,
        network: ValueNetwork,
        num_prompts: int,
        num_steps: int,
        *,
        learning_rate: float,
        buffer_iterations: int,
        momentum: float = 0.7,
        kind: str = "film",
    ) -> None:
        self.network, self.kind = network, kind
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4)
        self.device = next(network.parameters()).device
        self.baseline = torch.zeros(num_prompts, num_steps, device=self.device)
        self.seen = torch.zeros(num_prompts, dtype=torch.bool, device=self.device)
        self.scale = torch.ones(num_steps, device=self.device)
        self.trust = torch.zeros(num_steps, device=self.device)
        self.momentum = momentum
        self.buffer: deque[tuple[Trajectory, torch.Tensor, torch.Tensor, torch.Tensor]] = deque(
            maxlen=0 if kind == "none" else buffer_iterations
        )

    @torch.no_grad()
    def values(self, trajectory: Trajectory, text: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
        """(B, T): the value of every state that is still acted on. `text` is (B, E), `potentials` (B,
        T+1)."""
        return self.baseline[trajectory.prompt_ids] + self.trust * self.scale * self._predict(
            trajectory, text, potentials
        )

    def state_value(
        self,
        latents: torch.Tensor,
        state: int,
        timestep: torch.Tensor,
        text: torch.Tensor,
        potential: torch.Tensor,
    ) -> torch.Tensor:
        """(B, C, H, W) states at index `state` of their trajectories, their (B, E) text and (B,) potential
        -> what the network adds to the prompt's baseline (B,), differentiable."""
        if self.kind == "none":
            return torch.zeros_like(potential)
        return (
            self.trust[state]
            * self.scale[state]
            * self.network(latents, timestep.expand(len(latents)), text, potential)
        )

    def _predict(self, trajectory: Trajectory, text: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
        count, steps = trajectory.log_probs.shape
        if self.kind == "none":
            return torch.zeros(count, steps, device=self.device)
        flat = (
            trajectory.latents[:, :-1].flatten(0, 1),
            trajectory.timesteps[:-1].repeat(count),
            text.repeat_interleave(steps, dim=0),
            potentials[:, :-1].flatten(),
        )
        batch_size = max(1, BATCH_NUMBERS // trajectory.latents[0, 0].numel())
        chunks = [
            self.network(*(x.to(self.device) for x in parts))
            for parts in zip(*(x.split(batch_size) for x in flat), strict=True)
        ]
        return torch.cat(chunks).reshape(count, steps)

    def is_finite(self) -> bool:
        """Whether everything that its values are made of is a number."""
        parts = [*self.network.parameters(), self.baseline, self.scale, self.trust]
        return all(bool(part.isfinite().all()) for part in parts)

    @torch.no_grad()
    def observe(
        self, trajectory: Trajectory, text: torch.Tensor, potentials: torch.Tensor, returns: torch.Tensor
    ) -> None:
        """Add trajectories the network has not seen, with their returns (B, T): updates trust, baselines,
        scale and buffer."""
        groups = trajectory.prompt_ids
        prediction = centre_within(self._predict(trajectory, text, potentials), groups)
        actual = centre_within(returns, groups)
        power = self.scale * prediction.square().mean(dim=0)
        coefficient = torch.where(
            power > 1e-12, (prediction * actual).mean(dim=0) / power.clamp(min=1e-12), torch.zeros_like(power)
        ).clamp(0, 1)
        self.trust = torch.lerp(coefficient, self.trust, 0.5 if self.trust.any() else 0.0)
        for prompt in groups.unique():
            mean = returns[groups == prompt].mean(dim=0)
            self.baseline[prompt] = (
                torch.lerp(mean, self.baseline[prompt], self.momentum) if self.seen[prompt] else mean
            )
            self.seen[prompt] = True
        residual = returns - self.baseline[groups]
        spread = residual.square().mean(dim=0).sqrt().clamp(min=1e-4)
        self.scale = spread if not self.buffer else torch.lerp(spread, self.scale, self.momentum)
        self.buffer.append((trajectory, text, potentials, residual))

    def fit(self, steps: int, batch_size: int, generator: torch.Generator) -> float:
        """Regress the network on the buffer's residual returns (Huber loss); the mean loss of the last
        steps."""
        if self.kind == "none":
            return float("nan")
        trajectories, texts, potentials, residuals = zip(*self.buffer, strict=True)
        latents = torch.cat([t.latents[:, :-1] for t in trajectories])
        text, potential, residual = torch.cat(texts), torch.cat(potentials)[:, :-1], torch.cat(residuals)
        timesteps = trajectories[0].timesteps
        count, num_steps = residual.shape
        self.network.train()
        losses = []
        for _ in range(steps):
            index = torch.randint(count * num_steps, (batch_size,), generator=generator).to(self.device)
            row, step = index // num_steps, index % num_steps
            if self.kind == "clean_only":
                step = torch.full_like(step, num_steps - 1)
            states = latents[row.to(latents.device), step.to(latents.device)].to(self.device)
            prediction = self.network(states, timesteps[step], text[row], potential[row, step])
            loss = F.smooth_l1_loss(prediction, residual[row, step] / self.scale[step])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0).isfinite():
                self.optimizer.step()
            losses.append(loss.detach())
        self.network.eval()
        return torch.stack(losses[-50:]).mean().item() if losses else float("nan")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Network, optimizer, baselines and buffer, by name, for a checkpoint."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        tensors |= {name: getattr(self, name) for name in STATISTICS}
        buffered = numbered(
            {"text": text, "potentials": potentials, "residual": residual} | vars(trajectory)
            for trajectory, text, potentials, residual in self.buffer
        )
        return tensors | {f"buffer.{name}": value for name, value in buffered.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], offload: bool = False) -> None:
        """Put back what `state_dict` returned; if told to `offload`, its trajectories stay in main memory."""
        self.network.load_state_dict(under("network.", tensors))
        load_optimizer_tensors(self.optimizer, under("optimizer.", tensors))
        for name in STATISTICS:
            setattr(self, name, tensors[name].to(self.device))
        self.buffer.clear()
        for entry in entries_of(under("buffer.", tensors)):
            text, potentials, residual = (
                entry[name].to(self.device) for name in ("text", "potentials", "residual")
            )
            trajectory = Trajectory.from_state_dict(entry, self.device, offload)
            self.buffer.append((trajectory, text, potentials, residual))
