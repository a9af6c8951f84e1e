"""The loop that the trained baselines share: a LoRA on the UNet, AdamW, a loss that each of them brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.baselines.task import Task
from policy.lora import add_lora

Watch = Callable[[int], None]
"""Called with the number of steps taken after each of them."""


@dataclass(frozen=True)
class Training:
    """How an adapter is trained.

    Attributes:
        learning_rate: of AdamW.
        steps: optimizer steps.
        batch_size: states in each of them.
        rank: of the LoRA.
        lora_alpha: its scale before division by the rank.
        target_modules: endings of the modules that get it; `attn2`, where a UNet's images attend to texts,
            stands for the attention of a transformer too.
        lr_scheduler: diffusers' name of the learning rate's schedule.
        lr_warmup: share of the steps over which the learning rate rises.
        lr_cycles: how often the schedule starts anew, where it does.
        weight_decay: of AdamW.
        max_grad_norm: norm that the gradient is clipped to.
    """

    learning_rate: float
    steps: int
    batch_size: int
    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    lr_scheduler: str = "constant"
    lr_warmup: float = 0.0
    lr_cycles: int = 1
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


def train_lora(
    task: Task,
    training: Training,
    loss: Callable[[torch.Generator], torch.Tensor],
    seed: int,
    watch: Watch | None = None,
) -> None:
    """Put an adapter on the task's network and lower `loss`, which draws its batches with the generator it
    is handed."""
    attention = task.backbone.attention
    named = tuple(name.replace("attn2", attention) for name in training.target_modules)
    lower(task.denoiser, replace(training, target_modules=named), loss, seed, watch)


def lower(
    component: ModelMixin | PreTrainedModel,
    training: Training,
    loss: Callable[[torch.Generator], torch.Tensor],
    seed: int,
    watch: Watch | None = None,
) -> None:
    """The same with an adapter on a component of the pipeline."""
    torch.manual_seed(seed)
    parameters = add_lora(component, training.rank, training.lora_alpha, list(training.target_modules))
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = get_scheduler(
        training.lr_scheduler,
        optimizer,
        num_warmup_steps=round(training.lr_warmup * training.steps),
        num_training_steps=training.steps,
        num_cycles=training.lr_cycles,
    )
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(1, training.steps + 1), desc="steps")
    for step in bar:
        value = loss(generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{value.item():.4g}")
        if watch:
            watch(step)
