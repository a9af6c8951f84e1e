"""Training checkpoints: one safetensors file of tensors and one JSON file of numbers, complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from critic.critic import Critic
from policy.trajectory import Experience, Trajectory

TENSORS, NUMBERS = "state.safetensors", "state.json"
CRITIC_STATE = ("baseline", "seen", "scale", "trust")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments by parameter index, as a flat dictionary.

    bitsandbytes keeps the tensors of its quantization in a dictionary within; they are written beside the others, where it reads them too.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            inner = value if isinstance(value, dict) else {name: value}
            tensors |= {f"{i}.{key}": torch.as_tensor(tensor) for key, tensor in inner.items()}
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; a count of steps that was a plain number is one again."""
    state: dict[int, dict[str, torch.Tensor | int]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        plain = value.ndim == 0 and not value.is_floating_point()
        state.setdefault(int(index), {})[name] = int(value) if plain else value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def critic_tensors(critic: Critic) -> dict[str, torch.Tensor]:
    """Network, optimizer, baselines and buffer of a critic."""
    tensors = {f"network.{k}": v for k, v in critic.network.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(critic.optimizer).items()}
    tensors |= {name: getattr(critic, name) for name in CRITIC_STATE}
    for i, (trajectory, text, potentials, residual) in enumerate(critic.buffer):
        entry = {"text": text, "potentials": potentials, "residual": residual} | vars(trajectory)
        tensors |= {f"buffer.{i}.{name}": value for name, value in entry.items()}
    return tensors


def load_critic_tensors(critic: Critic, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `critic_tensors` returned."""
    critic.network.load_state_dict(_under("network.", tensors))
    load_optimizer_tensors(critic.optimizer, _under("optimizer.", tensors))
    for name in CRITIC_STATE:
        setattr(critic, name, tensors[name].to(critic.device))
    critic.buffer = deque(maxlen=critic.buffer.maxlen)
    for entry in _by_index(_under("buffer.", tensors), critic.device):
        text, potentials, residual = (entry.pop(name) for name in ("text", "potentials", "residual"))
        critic.buffer.append((Trajectory(**entry), text, potentials, residual))


def replay_tensors(replay: deque[Experience]) -> dict[str, torch.Tensor]:
    """Everything of the experiences that may be replayed."""
    tensors = {}
    for i, experience in enumerate(replay):
        entry = {"advantages": experience.advantages, "anchor_ids": experience.anchor_ids} | vars(experience.trajectory)
        if experience.slopes is not None:
            entry["slopes"] = experience.slopes
        tensors |= {f"{i}.{name}": value for name, value in entry.items()}
    return tensors


def load_replay_tensors(replay: deque[Experience], tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `replay_tensors` returned."""
    replay.clear()
    for entry in _by_index(tensors, device):
        advantages, anchor_ids, slopes = entry.pop("advantages"), entry.pop("anchor_ids"), entry.pop("slopes", None)
        replay.append(Experience(Trajectory(**entry), advantages, anchor_ids, slopes))


def _by_index(tensors: dict[str, torch.Tensor], device: torch.device) -> list[dict[str, torch.Tensor]]:
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        entries.setdefault(int(index), {})[name] = value.to(device)
    return [entries[index] for index in sorted(entries)]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_checkpoint(
    output_dir: Path, iteration: int, groups: dict[str, dict[str, torch.Tensor]], numbers: dict[str, Any], total_limit: int | None
) -> Path:
    """Write `checkpoint-<iteration>` aside, rename it, and drop the oldest beyond `total_limit`."""
    final = output_dir / f"checkpoint-{iteration}"
    aside = output_dir / f".checkpoint-{iteration}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    # Tensors may share memory (a slice of a batch); safetensors wants each on its own.
    tensors = {f"{group}/{name}": tensor.detach().cpu().contiguous().clone() for group, part in groups.items() for name, tensor in part.items()}
    save_file(tensors, aside / TENSORS)
    (aside / NUMBERS).write_text(json.dumps(numbers | {"iteration": iteration}, indent=2) + "\n", encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    if total_limit:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    return final


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit() and (p / NUMBERS).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def load_checkpoint(output_dir: Path, name: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Tensors by group, and numbers. `name` is a checkpoint directory, its name within `output_dir`, or "latest".

    Raises:
        ValueError: there is none of that name, or it is damaged.
    """
    if name == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            raise ValueError(f"There is no checkpoint in {output_dir} to resume from; start without --resume_from_checkpoint.")
        directory = found[-1]
    else:
        directory = Path(name) if Path(name).is_dir() else output_dir / name
    try:
        numbers = json.loads((directory / NUMBERS).read_text(encoding="utf-8"))
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(directory / TENSORS).items():
            group, tensor_name = key.split("/", 1)
            groups.setdefault(group, {})[tensor_name] = tensor
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {directory} is missing or damaged ({error}); resume from another one.") from error
    return groups, numbers
