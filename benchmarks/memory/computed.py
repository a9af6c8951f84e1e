"""What lies in a GPU's memory all through training, by flags: arithmetic on configs. Activations are not
in it (`peaks`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from benchmarks.memory.models import Model
from benchmarks.report import markdown
from pipelines.backbone import Backbone
from pipelines.memory import DTYPES, MemoryConfig
from policy.lora import AdapterConfig, add_lora
from training.config import RunConfig

BLOCK = 64
"""Weights of a 4-bit layer that share a float32 scale."""
ADAM_BYTES = {False: 8, True: 2}
"""Both moments of a parameter, without and with --use_8bit_adam: its scales for blocks of 256 are left
out, and so is that bitsandbytes keeps tensors of fewer than 4096 parameters in float32, so that its number is
the least it can be."""
FLAG_SETS: dict[str, list[str]] = {
    "none": [],
    "bf16": ["--mixed_precision", "bf16"],
    "bf16, 8-bit Adam": ["--mixed_precision", "bf16", "--use_8bit_adam"],
    "bf16, offloading": ["--mixed_precision", "bf16", "--offload_models", "--offload_trajectories"],
    "8-bit base": ["--mixed_precision", "bf16", "--load_in_8bit"],
    "4-bit base": ["--mixed_precision", "bf16", "--load_in_4bit"],
    "4-bit base, offloading": [
        *("--mixed_precision", "bf16", "--load_in_4bit"),
        *("--offload_models", "--offload_trajectories"),
    ],
}
DENOISER = "UNet or transformer"
WAITING = ("text encoders", "VAE", "teacher")
"""What --offload_models keeps in main memory between its uses."""
COLUMNS = (
    DENOISER,
    *WAITING,
    "reward predictor",
    "adapter, gradients, Adam",
    "prompts",
    "trajectories",
)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters.

    Attributes:
        linear: (out, in) of the Linear layers of UNet or transformer, which are what is quantised.
        rest: its other parameters, the biases of those layers included.
        adapter: of the LoRA.
        prompt: of the text encoders' states of one prompt.
    """

    linear: list[tuple[int, int]]
    rest: int
    text_encoders: int
    vae: int
    teacher: int
    predictor: int
    adapter: int
    prompt: int


def count(module: nn.Module) -> int:
    """Numbers in parameters and buffers: the places in an image are a large buffer of Stable Diffusion 3."""
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def weigh(model: Model, adapter: AdapterConfig) -> Weights:
    """Count the parameters of a model and an adapter without making them."""
    backbone = Backbone.of(model.build_pipeline(torch.float32, "meta"))
    denoiser = backbone.denoiser
    linear = [(m.out_features, m.in_features) for m in denoiser.modules() if isinstance(m, nn.Linear)]
    rest = count(denoiser) - sum(rows * columns for rows, columns in linear)
    with torch.device("meta"):
        others = [
            sum(map(count, backbone.text_encoders)),
            count(backbone.vae),
            count(model.build_teacher("meta")),
            count(model.build_predictor()),
        ]
        added = add_lora(denoiser, adapter.rank, adapter.alpha, adapter.targets(backbone))
    prompt = backbone.encode_no_prompt().states.numel()
    return Weights(linear, rest, *others, adapter=sum(p.numel() for p in added), prompt=prompt)


def linear_bytes(linear: Sequence[tuple[int, int]], width: int, memory: MemoryConfig) -> int:
    """Weights of Linear layers: `width` bytes each, or as bitsandbytes quantises them."""
    if memory.load_in_4bit:
        return sum(-(-rows * columns // 2) + 4 * -(-rows * columns // BLOCK) for rows, columns in linear)
    if memory.load_in_8bit:
        return sum(rows * columns + 4 * rows for rows, columns in linear)
    return width * sum(rows * columns for rows, columns in linear)


def components(model: Model, weights: Weights, config: RunConfig) -> dict[str, float]:
    """Bytes on the GPU during an update of a run, by `COLUMNS`."""
    memory = config.memory
    width = torch.finfo(DTYPES[memory.precision]).bits // 8
    waiting = 0 if memory.offload_models else 1
    prompts = config.concept.num_retain_prompts + config.concept.num_vocabulary_prompts
    return {
        DENOISER: linear_bytes(weights.linear, width, memory) + width * weights.rest,
        "text encoders": waiting * width * weights.text_encoders,
        "VAE": waiting * width * weights.vae,
        "teacher": waiting * 4 * weights.teacher,
        "reward predictor": 4 * weights.predictor,
        "adapter, gradients, Adam": (4 + 4 + ADAM_BYTES[config.optimizer.use_8bit_adam]) * weights.adapter,
        "prompts": prompts * width * weights.prompt,
        "trajectories": 0 if memory.offload_trajectories else trajectory_bytes(model, config),
    }


def trajectory_bytes(model: Model, config: RunConfig) -> int:
    """The base's trajectories of prompts to keep, and those of forget prompts with their value gradients, of
    which the first iteration has the most."""
    schedule, steps = config.schedule, config.environment.num_inference_steps
    states = 2 * steps + 1  # latents and means
    most = max(schedule.warmup_rollouts, schedule.images_per_iteration)
    held = schedule.retain_rollouts + config.concept.num_vocabulary_prompts
    kept = held * states + most * (states + steps)
    return kept * 4 * prod(model.latent_shape)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown in MB, a row for each set of flags, with their sum."""
    shown = []
    for name, row in rows.items():
        cells = [row[column] / 1e6 for column in COLUMNS]
        shown.append([name, *map(_megabytes, [*cells, sum(cells)])])
    return markdown(["flags", *COLUMNS, "together"], shown)


def _megabytes(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value else "-"
