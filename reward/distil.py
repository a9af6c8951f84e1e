"""The distillation itself: noised latents in, the teacher's embeddings of their clean images as the answer.

With a squared error the best answer is the direction of the expected embedding given the noisy state. Every
step has a generator of its own, seeded by (seed, step), so that a run that was interrupted and resumed sees
the same noise.
"""

from __future__ import annotations

import math
import signal
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from common.checkpoints import (
    drop_oldest,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    wind_forward,
)
from common.errors import Unsound
from common.film import MAX_WIDTH, size_of
from common.flags import SEED, flag
from common.interruption import Interruption, leave
from common.names import public_name
from common.processes import anywhere
from common.room import Room, going_on
from pipelines.noise import NoiseSchedule
from reward.latents import BaseRollouts, BaseSamples, Latents, Source, collect
from reward.origin import describe_origin
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

CACHE_NAME = "latents"
DEFAULT_IMAGES = 4096
NOISE_LEVELS = ("all", "clean")
CLEAN_SHARE = 0.1
"""So many of the latents of a step are left clean, at timestep 0."""
ROLLOUT_SHARE = 0.5
"""So many are states of rollouts instead, where there are any."""
MOST_LOST = 20
"""So many gradients in turn may be NaN or infinite: a gradient scaler finds its scale within fewer."""


@dataclass(frozen=True)
class DistilConfig:
    """Settings of a distillation.

    Attributes:
        steps: optimizer steps.
        batch_size: noised latents in a step, over all processes.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        ema_decay: of the averaged weights, which are what is kept; 0 keeps the last ones.
        max_grad_norm: what the gradient's norm is clipped to.
        noise_levels: "all" timesteps, or "clean" latents at timestep 0 alone.
        use_8bit_adam: bitsandbytes' AdamW with moments of eight bits.
        seed: of batches and noise.
    """

    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    noise_levels: str = "all"
    use_8bit_adam: bool = False
    seed: int = 0


@dataclass(frozen=True)
class DistilFlags:
    """Distillation."""

    max_train_steps: int = flag(4000, at_least=1, help="Optimizer steps.")
    train_batch_size: int = flag(
        128, at_least=1, help="Noised latents in an optimizer step, over all processes."
    )
    learning_rate: float = flag(2e-3, above=0, help="Peak of the one-cycle learning rate.")
    ema_decay: float = flag(
        0.999,
        at_least=0,
        below=1,
        help="Decay of the averaged weights, which are what is saved; 0 saves the last ones.",
    )
    max_grad_norm: float = flag(1.0, above=0, help="Norm that the gradient is clipped to.")
    width: int = flag(
        48,
        at_least=8,
        at_most=MAX_WIDTH,
        help=f"Channels of the predictor's first stage, a multiple of 8, at most {MAX_WIDTH}.",
    )
    seed: int = flag(0, within=SEED, help="Seed of images, noise and weights.")

    def config(self, **changes: Any) -> DistilConfig:
        """The settings of the distillation, with `changes`."""
        return replace(
            DistilConfig(
                steps=self.max_train_steps,
                batch_size=self.train_batch_size,
                learning_rate=self.learning_rate,
                ema_decay=self.ema_decay,
                max_grad_norm=self.max_grad_norm,
                seed=self.seed,
            ),
            **changes,
        )

    def check_width(self) -> None:
        """
        Raises:
            ValueError: the network cannot have this width.
        """
        if self.width % 8:
            raise ValueError(f"--width must be a multiple of 8 from 8 to {MAX_WIDTH}, got {self.width}.")


@dataclass(frozen=True)
class Checkpointing:
    """Where a distillation keeps its state, and whether it goes on from one.

    Attributes:
        directory: holds `checkpoint-<step>`.
        every: steps between two of them; None writes none.
        total_limit: the oldest beyond so many are dropped; None keeps all.
        resume: a checkpoint's name or "latest"; None starts anew.
    """

    directory: Path
    every: int | None = None
    total_limit: int | None = None
    resume: str | None = None


def noisy_batch(
    data: Latents,
    noise_schedule: NoiseSchedule,
    batch_size: int,
    noise_levels: str,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a step learns from: noisy latents (B, C, h, w), timesteps (B,), and the embeddings (B, D) to be
    told from them.

    Finished latents with noise added, some of them left clean, and states of rollouts where
    there are any.
    """
    rows = torch.randint(len(data), (batch_size,), generator=generator)
    t = torch.randint(len(noise_schedule), (batch_size,), generator=generator)
    clean = torch.rand(batch_size, generator=generator) < (1.0 if noise_levels == "clean" else CLEAN_SHARE)
    x0 = data.latents[rows]
    noise = torch.randn(x0.shape, generator=generator)
    t = t.masked_fill(clean, 0)
    noisy = torch.where(clean[:, None, None, None], x0, noise_schedule.add_noise(x0, noise, t))
    if len(data.timesteps) and noise_levels != "clean":
        rolled = torch.rand(batch_size, generator=generator) < ROLLOUT_SHARE
        step = torch.randint(len(data.timesteps), (batch_size,), generator=generator)
        noisy[rolled] = data.states[rows[rolled], step[rolled]].float()
        # A rollout knows few timesteps: told exactly, they would say that this is a rollout, and nothing of
        # the others would be learnt.
        last = noise_schedule.last
        apart = max(1, last // len(data.timesteps))
        off = torch.randint(apart, (batch_size,), generator=generator) - apart // 2
        off = (off * gaps(data.timesteps)[step].clamp(max=apart) / apart).round().long()
        t = torch.where(rolled, (data.timesteps[step].round().long() + off).clamp(0, last), t)
    return noisy, t, data.embeddings[rows]


def gaps(timesteps: torch.Tensor) -> torch.Tensor:
    """(T,) how far each timestep is from the nearest other; a shifted flow's lie closer the noisier."""
    apart = timesteps.float().diff().abs()
    if not len(apart):
        return torch.ones(len(timesteps))
    return torch.minimum(torch.cat([apart[:1], apart]), torch.cat([apart, apart[-1:]]))


def create_optimizer(parameters: list[torch.nn.Parameter], config: DistilConfig) -> torch.optim.Optimizer:
    """AdamW, of eight bits if that is asked for."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


def distil(
    predictor: RewardPredictor,
    data: Latents,
    noise_schedule: NoiseSchedule,
    config: DistilConfig,
    accelerator: Accelerator | None = None,
    *,
    checkpoints: Checkpointing | None = None,
    progress: str = "reward predictor",
) -> None:
    """Minimise |f(x_t, t) - e|^2 over noised latents, in place; the predictor ends up with its averaged
    weights, in evaluation mode.

    Every process draws the whole batch and takes its own share of it, so that the result does not depend on
    their number.

    Raises:
        ValueError: the batch cannot be shared out evenly, or a checkpoint to resume from is missing, damaged
            or of other settings.
        Unsound: one gradient after another was no number.
        OSError: there is no room for the predictor.
        SystemExit: it was interrupted, and what it had learnt is in a checkpoint.
    """
    accelerator = accelerator or Accelerator()
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"--train_batch_size {config.batch_size} cannot be shared by {accelerator.num_processes} processes; give a multiple."
        )
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    parameters = list(predictor.parameters())
    optimizer = create_optimizer(parameters, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=0.1
    )
    average = [p.detach().clone().to(accelerator.device) for p in parameters]
    model, prepared = accelerator.prepare(predictor, optimizer)
    start = lost = 0
    if checkpoints and checkpoints.resume:
        start = _resume(
            checkpoints,
            config,
            data,
            predictor=predictor,
            optimizer=optimizer,
            schedule=schedule,
            average=average,
        )
        if accelerator.is_main_process:
            drop_oldest(checkpoints.directory, start, checkpoints.total_limit)
    model.train()
    bar = tqdm(
        range(start, config.steps),
        initial=start,
        total=config.steps,
        desc=progress,
        mininterval=1,
        disable=not accelerator.is_local_main_process,
    )
    interruption = Interruption()
    size = sum(p.nbytes for p in parameters) if checkpoints and accelerator.is_main_process else 0
    room = Room(checkpoints.directory if checkpoints else Path(), size)
    with room, interruption if checkpoints else nullcontext():
        for step in bar:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            batch = noisy_batch(data, noise_schedule, config.batch_size, config.noise_levels, generator)
            noisy, t, embeddings = (value[mine].to(accelerator.device) for value in batch)
            loss = F.mse_loss(model(noisy, t).float(), embeddings, reduction="none").sum(-1).mean()
            prepared.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            norm = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
            lost = 0 if math.isfinite(norm) else lost + 1
            if lost > MOST_LOST:
                raise Unsound(
                    f"The last {lost} gradients of the {progress} were no numbers; lower --learning_rate."
                )
            if (
                not lost or accelerator.scaler is not None
            ):  # a gradient scaler leaves such a step out itself, and lowers its scale
                prepared.step()
            schedule.step()
            torch._foreach_lerp_(
                average, [p.detach() for p in parameters], 1 - min(config.ema_decay, (step + 1) / (step + 10))
            )
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
            if checkpoints is None:
                continue
            ended = anywhere(interruption.received is not None) and step + 1 < config.steps
            if ended:
                room.give()
            due = checkpoints.every and (step + 1) % checkpoints.every == 0 and step + 1 < config.steps
            if ended or due:
                if accelerator.is_main_process:
                    with going_on():
                        _save(
                            checkpoints,
                            config,
                            data,
                            step + 1,
                            predictor=predictor,
                            optimizer=optimizer,
                            average=average,
                        )
                accelerator.wait_for_everyone()
            if ended:
                leave(
                    interruption.received or signal.SIGTERM,
                    f"stopped after step {step + 1}. {latest_checkpoint(checkpoints.directory)}".strip(),
                )
    with torch.no_grad():
        torch._foreach_copy_(list[torch.Tensor](parameters), average)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    predictor.eval()


def _settings(config: DistilConfig, data: Latents, predictor: RewardPredictor) -> dict[str, Any]:
    network = {
        name: value
        for name, value in predictor.config.items()
        if name not in ("origin", "prompts", "clip_model")
    }
    made_from = {
        "data": predictor.config["origin"].get("data"),
        "images": len(data),
        "rollout_steps": len(data.timesteps),
    }
    return asdict(config) | made_from | {"network": network}


def _save(
    checkpoints: Checkpointing,
    config: DistilConfig,
    data: Latents,
    step: int,
    *,
    predictor: RewardPredictor,
    optimizer: torch.optim.Optimizer,
    average: list[torch.Tensor],
) -> None:
    groups = {
        "network": predictor.state_dict(),
        "optimizer": optimizer_tensors(optimizer),
        "average": {str(i): value for i, value in enumerate(average)},
    }
    save_checkpoint(
        checkpoints.directory,
        step,
        groups,
        {"settings": _settings(config, data, predictor)},
        checkpoints.total_limit,
    )


def _resume(
    checkpoints: Checkpointing,
    config: DistilConfig,
    data: Latents,
    *,
    predictor: RewardPredictor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    average: list[torch.Tensor],
) -> int:
    groups, numbers = load_checkpoint(checkpoints.directory, str(checkpoints.resume))
    settings = _settings(config, data, predictor)
    made = numbers.get("settings")
    if not isinstance(made, dict):
        raise ValueError(f"The checkpoint in {checkpoints.directory} is none of a reward predictor.")
    if made != settings:
        name = next(name for name in settings | made if made.get(name) != settings.get(name))
        raise ValueError(
            f"The checkpoint in {checkpoints.directory} was made with other settings ({name}: {made.get(name)} there, {settings.get(name)} now); "
            "resume with the same ones, or start without --resume_from_checkpoint."
        )
    try:
        predictor.load_state_dict(groups["network"])
        load_optimizer_tensors(optimizer, groups["optimizer"])
        for i, value in enumerate(average):
            value.copy_(groups["average"][str(i)])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The checkpoint in {checkpoints.directory} is damaged ({str(error).splitlines()[0]}); resume from another one."
        ) from error
    wind_forward(schedule, numbers["iteration"])
    return int(numbers["iteration"])


@torch.no_grad()
def cosine_by_noise(
    predictor: RewardPredictor, data: Latents, noise_schedule: NoiseSchedule, generator: torch.Generator
) -> dict[int, float]:
    """Mean cosine to the teacher's embedding on held-out latents at five noise levels; the predictor is on
    the CPU."""
    last = noise_schedule.last
    result = {}
    for t in (0, last // 4, last // 2, 3 * last // 4, last):
        steps = torch.full((len(data),), t)
        noise = torch.randn(data.latents.shape, generator=generator)
        noisy = data.latents if t == 0 else noise_schedule.add_noise(data.latents, noise, steps)
        result[t] = F.cosine_similarity(predictor(noisy, steps), data.embeddings).mean().item()
    return result


def train_predictor(
    pipe: DiffusionPipeline,
    teacher: Teacher,
    prompts: list[str],
    *,
    num_images: int = DEFAULT_IMAGES,
    num_inference_steps: int = 16,
    guidance_scale: float = 7.5,
    batch_size: int | None = None,
    steps: int = 4000,
    train_batch_size: int = 128,
    learning_rate: float = 2e-3,
    width: int = 48,
    seed: int = 0,
    learn_from_rollouts: bool = True,
    clip_model: str | None = None,
    base_name: str | Path | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> RewardPredictor:
    """Draw, embed, distil on the base's own samples; says at the end how well the predictor does on
    latents it was not trained on."""
    source = (BaseRollouts if learn_from_rollouts else BaseSamples)(
        pipe, prompts, num_inference_steps, guidance_scale, shard_size=batch_size, seed=seed
    )
    data = collect(source, teacher, num_images, cache_dir)
    config = DistilConfig(steps=steps, batch_size=train_batch_size, learning_rate=learning_rate, seed=seed)
    base = {"name": base_name and public_name(base_name), "revision": revision}
    return fit_predictor(
        pipe, teacher, source, data, config, prompts=prompts, width=width, clip_model=clip_model, base=base
    )


def fit_predictor(
    pipe: DiffusionPipeline,
    teacher: Teacher,
    source: Source,
    data: Latents,
    config: DistilConfig,
    *,
    prompts: list[str],
    base: dict[str, Any],
    width: int = 48,
    timestep_conditioning: bool = True,
    clip_model: str | None = None,
    accelerator: Accelerator | None = None,
    checkpoints: Checkpointing | None = None,
) -> RewardPredictor:
    """A predictor for this base, distilled from `data` but for a tenth that is held out; on the CPU, in
    evaluation mode.

    Args:
        prompts: what the config records as drawn by the base.
        base: its public name and revision, for the record.
        timestep_conditioning: False is the twin that is not told the timestep.
        clip_model: the teacher's name as it was given.
    """
    accelerator = accelerator or Accelerator()
    train, held_out = data.held_out()
    shape = tuple(data.latents.shape[1:])
    predictor = new_predictor(
        shape[0],
        size_of(shape),
        data.embeddings.shape[1],
        seed=config.seed,
        width=width,
        # A local directory means nothing on another machine: only names that anyone can load are recorded.
        clip_model=None if clip_model is None or clip_model.startswith("local-dir:") else clip_model,
        prompts=prompts,
        timestep_conditioning=timestep_conditioning,
        unit_length=teacher.unit_length,
        origin=describe_origin(
            base | {"pipeline_class": source.backbone.pipeline_class, "latent_shape": list(shape)},
            pipe.scheduler,
            teacher,
            source.public() | {"count": len(data)},
            asdict(config),
        ),
    )
    noise_schedule = NoiseSchedule.of(pipe.scheduler)
    distil(
        predictor.to(accelerator.device), train, noise_schedule, config, accelerator, checkpoints=checkpoints
    )
    cosines = cosine_by_noise(
        predictor.cpu(), held_out, noise_schedule, torch.Generator().manual_seed(config.seed)
    )
    accelerator.print(
        "cosine to the teacher on held-out latents: "
        + ", ".join(f"t={t}: {c:.3f}" for t, c in cosines.items())
    )
    return predictor


def new_predictor(*shape: Any, seed: int, **settings: Any) -> RewardPredictor:
    """An untrained predictor whose weights the seed decides, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RewardPredictor(*shape, **settings)
