"""What a predictor was made from, as its config records it, and whether that is what it is used with now.

No local path is recorded: a directory is named by its last part, and its weights are told apart by a
    fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import nn

from common.film import shape_text, size_of
from common.network import CheckpointError
from common.versions import versions
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

PROBE_TOLERANCE = 0.02
NOISE_TOLERANCE = 1e-3


def fingerprint(*modules: nn.Module) -> str:
    """Sixteen hexadecimal digits from a sample of every tensor's values, the same on every device."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, len(flat) // 16)][:17].cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {sample.tolist()}".encode())
    return digest.hexdigest()[:16]


def key_of(description: dict[str, Any]) -> str:
    """A short name for a description: equal descriptions, equal names."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def noise_schedule(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What decides how noisy a latent is at a timestep: the settings, and alpha-bar at five timesteps,
    which is what they come to. Flows have one schedule for all, at every timestep."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        steps = scheduler.config.num_train_timesteps
        return {"prediction_type": "flow", "num_train_timesteps": steps, "alphas_cumprod": {}}
    config = DDIMScheduler.from_config(scheduler.config).config
    last = config.num_train_timesteps - 1
    alphas = DDIMScheduler.from_config(scheduler.config).alphas_cumprod
    return {
        **{
            name: config[name]
            for name in ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
        },
        "alphas_cumprod": {
            str(t): round(alphas[t].item(), 6) for t in (0, last // 4, last // 2, 3 * last // 4, last)
        },
    }


def describe_origin(
    base: dict[str, Any],
    scheduler: SchedulerMixin,
    teacher: Teacher,
    data: dict[str, Any],
    training: dict[str, Any],
) -> dict[str, Any]:
    """The record of a new predictor.

    Args:
        base: public name, revision and class of the base, shape of its latents.
        scheduler: the base's own.
        data: what its latents were drawn from, how many of them.
        training: settings of the distillation.
    """
    return {
        "base": base,
        "noise_schedule": noise_schedule(scheduler),
        "teacher": teacher.identity(),
        "data": data,
        "training": training,
        "versions": versions(),
    }


def check_fit(
    predictor: RewardPredictor,
    latent_shape: tuple[int, int, int],
    pipeline_class: str,
    scheduler: SchedulerMixin,
    teacher: Teacher,
) -> None:
    """Refuse a predictor that was made for other latents, another noise schedule or another CLIP; what an old
    one does not record is let pass.

    Args:
        latent_shape: (C, H, W) of the base's latents.
        pipeline_class: of the base, by diffusers' name: latents of one shape mean something else to the VAE
            of another class.
        scheduler: the base's own.

    Raises:
        CheckpointError: which of them, what each side has, and what to do.
    """
    have, origin = predictor.config, predictor.config["origin"]
    advice = "train one for this base with `python -m reward.train`."
    made_for = origin.get("base", {}).get("name")
    named = f"The reward predictor (made for {made_for})" if made_for else "The reward predictor"
    made, used = (have["in_channels"], have["sample_size"]), (latent_shape[0], size_of(latent_shape))
    if made != used:
        raise CheckpointError(
            f"{named} was made for {shape_text(*made)} latents, the base has {shape_text(*used)}; {advice.removesuffix('.')}, "
            "at the same --resolution."
        )
    made_class = origin.get("base", {}).get("pipeline_class", pipeline_class)
    if made_class != pipeline_class:
        raise CheckpointError(
            f"{named} was made for the latents of a {made_class}, the base is a {pipeline_class}; {advice}"
        )
    recorded, identity = origin.get("teacher", {}), teacher.identity()
    if ("labels" in recorded) != ("labels" in identity):
        kind = (
            "a classifier; give it with --reward_type classifier"
            if "labels" in recorded
            else "a CLIP; leave --reward_type classifier out"
        )
        raise CheckpointError(
            f"{named} was distilled from {kind}, or train one from {teacher.name} with `python -m reward.train`."
        )
    if recorded.get("labels") != identity.get("labels"):
        raise CheckpointError(
            f"{named} knows the labels {_shown(recorded['labels'])}, the classifier {teacher.name} has {_shown(identity['labels'])}; "
            "give the classifier it was distilled from, or train one from this classifier with `python -m reward.train`."
        )
    width = teacher.encode_text(["a"]).shape[-1]
    if have["embed_dim"] != width:
        raise CheckpointError(
            f"{named} speaks embeddings of length {have['embed_dim']}, the CLIP model {teacher.name} of {width}; "
            "give the CLIP it was distilled from, or train one for this CLIP with `python -m reward.train`."
        )
    if schedule := origin.get("noise_schedule"):
        _check_schedule(named, schedule, noise_schedule(scheduler), advice)
    if "embedding" in recorded:
        found = teacher.encode_text([recorded["probe"]])[0, : len(recorded["embedding"])].cpu()
        if (found - torch.tensor(recorded["embedding"])).abs().max() > PROBE_TOLERANCE:
            raise CheckpointError(
                f"{named} was distilled from {have['clip_model'] or 'another CLIP'}, the CLIP model {teacher.name} has embeddings of the same length "
                "that mean something else; give the CLIP it was distilled from, or train one for this CLIP with `python -m reward.train`."
            )


def _shown(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _check_schedule(named: str, made: dict[str, Any], used: dict[str, Any], advice: str) -> None:
    if made["num_train_timesteps"] != used["num_train_timesteps"]:
        raise CheckpointError(
            f"{named} knows {made['num_train_timesteps']} timesteps, the base has {used['num_train_timesteps']}; {advice}"
        )
    for t, alpha in made["alphas_cumprod"].items():
        if abs(alpha - used["alphas_cumprod"][t]) > NOISE_TOLERANCE:
            raise CheckpointError(
                f"{named} was made for the noise schedule {made['beta_schedule']} {made['beta_start']} to {made['beta_end']} (alpha-bar {alpha:.4f} at "
                f"t={t}), the base has {used['beta_schedule']} {used['beta_start']} to {used['beta_end']} ({used['alphas_cumprod'][t]:.4f}); {advice}"
            )
