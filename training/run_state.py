"""What a run carries from iteration to iteration: all of it goes into its checkpoints and comes back from
them."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from common.checkpoints import (
    Checkpoint,
    entries_of,
    load_optimizer_tensors,
    numbered,
    optimizer_tensors,
    save_checkpoint,
)
from critic.critic import Critic
from policy.lora import load_lora_state, lora_state
from policy.trajectory import Experience


@dataclass
class Progress:
    """Counters and decisions."""

    iteration: int = 0
    images: int = 0
    unet_samples: int = 0
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    brakes: int = 0
    replaced: list[float] = field(default_factory=list)
    retain_kl: float = 0.0
    step_kl: float = 0.0
    kl_coef: float = 0.0
    first_ratio_deviation: float | None = None
    stopped_by: str = ""


AFTER_A_BRAKE = 0.25
"""What is left of the learning rate: three brakes make a rate sixty times smaller."""


@dataclass
class RunState:
    """The state of a run between two iterations.

    Attributes:
        good: the adapter as it was when its images were last found sound.
        replay: experiences of earlier iterations that may be learnt from again.
    """

    unet: UNet2DConditionModel
    optimizer: Any
    lr_scheduler: Any
    critic: Critic
    replay: deque[Experience]
    progress: Progress
    good: dict[str, torch.Tensor]

    def keep(self) -> None:
        """The adapter is good as it is."""
        self.good = lora_state(self.unet)

    def go_back(self) -> None:
        """Put the last good adapter back, forget what was learnt from since, and learn by a smaller rate."""
        load_lora_state(self.unet, self.good)
        self.replay.clear()
        self.lr_scheduler.base_lrs = [rate * AFTER_A_BRAKE for rate in self.lr_scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= AFTER_A_BRAKE
        self.progress.retain_kl = self.progress.step_kl = 0.0

    def save(self, output_dir: Path, settings: dict[str, Any], total_limit: int | None) -> None:
        """Write a checkpoint of this iteration, with the settings that a run which goes on from it must
        share.

        Raises:
            OSError: it could not be written.
        """
        groups = {
            "lora": lora_state(self.unet),
            "good": self.good,
            "optimizer": optimizer_tensors(self.optimizer),
            "critic": self.critic.state_dict(),
            "replay": numbered(experience.state_dict() for experience in self.replay),
        }
        numbers = {
            "progress": asdict(self.progress),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "settings": settings,
        }
        save_checkpoint(output_dir, self.progress.iteration, groups, numbers, total_limit)

    def restore(self, checkpoint: Checkpoint, device: torch.device, offload: bool) -> None:
        """Put back what `save` wrote; trajectories stay in main memory if told to `offload`."""
        groups, numbers = checkpoint
        load_lora_state(self.unet, groups["lora"])
        load_optimizer_tensors(self.optimizer, groups["optimizer"])
        self.critic.load_state_dict(groups["critic"], offload)
        self.replay.clear()
        self.replay.extend(
            Experience.from_state_dict(entry, device, offload)
            for entry in entries_of(groups.get("replay", {}))
        )
        self.lr_scheduler.load_state_dict(numbers["lr_scheduler"])
        for group in self.optimizer.param_groups:
            group["lr"] = numbers["learning_rate"]
        self.progress, self.good = Progress(**numbers["progress"]), groups["good"]
