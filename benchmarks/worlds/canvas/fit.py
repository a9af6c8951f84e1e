"""One resumable training loop for every model of this world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from tqdm.auto import tqdm

from benchmarks.worlds.muon import MuonAdamW
from common.checkpoints import load_optimizer_tensors, optimizer_tensors, wind_forward
from common.files import make_directory, write_bytes

Moving = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]
Recipe = Callable[[nn.Module, int], Moving]
"""A network and the number of steps -> what moves its parameters, and how its learning rate goes."""

INNER_SIZE = 16
"""Rows and columns that a weight has at least if Muon is to move it: a layer between others, not one that
reads colours or writes them."""


def adamw(learning_rate: float, weight_decay: float = 1e-4) -> Recipe:
    """AdamW with a one-cycle schedule."""

    def recipe(model: nn.Module, steps: int) -> Moving:
        optimizer = torch.optim.AdamW(trained(model), lr=learning_rate, weight_decay=weight_decay)
        return optimizer, one_cycle(optimizer, learning_rate, steps)

    return recipe


def muon(learning_rate: float, weight_decay: float = 1e-4) -> Recipe:
    """Muon for linear and convolutional layers, AdamW for all else, with a one-cycle schedule."""

    def recipe(model: nn.Module, steps: int) -> Moving:
        layers = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        inner = {w for w in layers if w.requires_grad and min(w.flatten(1).shape) >= INNER_SIZE}
        groups = [
            {"params": [p for p in trained(model) if p in inner], "orthogonal": True},
            {"params": [p for p in trained(model) if p not in inner]},
        ]
        optimizer = MuonAdamW(groups, learning_rate, weight_decay)
        return optimizer, one_cycle(optimizer, learning_rate, steps)

    return recipe


def one_cycle(
    optimizer: torch.optim.Optimizer, learning_rate: float, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """A tenth of the steps up to the learning rate, the others down to nothing."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Those parameters that require gradients."""
    return [p for p in model.parameters() if p.requires_grad]


def fit(
    name: str,
    model: nn.Module,
    loss_fn: Callable[[int, torch.Generator], torch.Tensor],
    recipe: Recipe,
    *,
    steps: int,
    state_dir: Path,
    seed: int,
    ema_decay: float | None = None,
    save_every: int = 500,
) -> None:
    """Train those of `model`'s parameters that require it, in place, resuming from `state_dir` if it can.

    `loss_fn` draws its own batch from the step's number and the generator it is given. The generator is
    seeded by (seed, step), so that a run that was interrupted and resumed sees the same batches. With
    `ema_decay` the model ends up holding the exponential moving average of its weights.
    """
    parameters = trained(model)
    optimizer, schedule = recipe(model, steps)
    average = [p.detach().clone() for p in parameters] if ema_decay else []
    state_file = state_dir / f"{name}.safetensors"
    start = _load_state(state_file, model, optimizer, schedule, average) if state_file.exists() else 0

    model.train()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=2)
    for step in bar:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        loss = loss_fn(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if ema_decay:
            torch._foreach_lerp_(
                average, [p.detach() for p in parameters], 1 - min(ema_decay, (step + 1) / (step + 10))
            )
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save_state(state_file, model, optimizer, average, step + 1)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=bool(average)):
            parameter.copy_(mean)
    model.eval()


def _save_state(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[torch.Tensor], step: int
) -> None:
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"optimizer.{k}": v.contiguous() for k, v in optimizer_tensors(optimizer).items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(average)}
    write_bytes(make_directory(file.parent) / file.name, save(tensors | {"step": torch.tensor(step)}))


def _load_state(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    average: list[torch.Tensor],
) -> int:
    tensors = load_file(file)
    step = int(tensors["step"])
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    load_optimizer_tensors(
        optimizer, {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    )
    for i, mean in enumerate(average):
        mean.copy_(tensors[f"ema.{i}"])
    wind_forward(schedule, step)
    return step
