"""What a user can get wrong, found before anything is loaded."""

from __future__ import annotations

import json
import os
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env

from common.checkpoints import Checkpoint
from common.files import is_empty
from common.flags import settings_of
from common.names import hub_id
from common.processes import processes
from training.config import RunConfig
from training.inputs import what_differs


def check(config: RunConfig) -> None:
    """All checks that need no model.

    Raises:
        ValueError: which flags are wrong, and what to do.
    """
    check_output_dir(config)
    check_steps(config)
    check_objective(config)
    check_hub(config)
    check_tracker(config.output.report_to)
    check_launcher()
    check_processes(config)


def check_output_dir(config: RunConfig) -> None:
    """Refuse a directory that is not empty, unless told to overwrite it or to resume in it."""
    output, directory = config.output, config.output.output_dir
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output_dir {directory} is a file.")
    allowed = output.overwrite_output_dir or output.resume_from_checkpoint
    if not allowed and directory.is_dir() and not is_empty(directory):
        raise ValueError(
            f"{directory} is not empty; choose another --output_dir, add --overwrite_output_dir, or "
            "--resume_from_checkpoint latest."
        )


def check_steps(config: RunConfig) -> None:
    """Refuse to mask all denoising steps."""
    masked, steps = config.update.masked_steps, config.environment.num_inference_steps
    if masked >= steps:
        raise ValueError(f"--masked_steps {masked} leaves none of the {steps} denoising steps to train.")


def check_objective(config: RunConfig) -> None:
    """Refuse settings of which one has no effect."""
    credit, uses_critic = config.credit, config.credit.estimator.uses_critic
    if credit.advantage == "pathwise" and credit.terminal_weight:
        raise ValueError(
            "--terminal_weight has no gradient that --advantage pathwise could use; choose --gamma, or another "
            "--advantage."
        )
    if config.critic.critic_model_name_or_path and not uses_critic:
        raise ValueError(
            f"--advantage {credit.advantage} asks no critic at its discount; add --gamma 0.5, or leave "
            "--critic_model_name_or_path out."
        )
    if uses_critic and config.schedule.warmup_rollouts < 2:
        raise ValueError("--warmup_rollouts must be at least 2 for a critic: one of them is held out.")


def check_hub(config: RunConfig) -> None:
    """Refuse a token that a tracker might publish, and a base id that is none."""
    output = config.output
    if config.hub.hub_token and output.report_to in ("wandb", "all"):
        raise ValueError(
            f"--report_to {output.report_to} together with --hub_token might expose the token; run "
            "`hf auth login` in place of --hub_token."
        )
    if output.base_model_id and not config.base.pretrained_model_name_or_path:
        raise ValueError(
            "--base_model_id names what --pretrained_model_name_or_path is a copy of; give both or neither."
        )
    if output.base_model_id and not hub_id(output.base_model_id):
        raise ValueError(
            f"--base_model_id {output.base_model_id} is not the id of a model on the Hub, which is OWNER/NAME."
        )


def check_tracker(name: str) -> None:
    """Refuse a tracker that accelerate does not know or that is not installed."""
    installed = [tracker.value for tracker in get_available_trackers()]
    if name in ("none", "all", *installed):
        return
    lack = (
        f"needs the package {name}, which accelerate does not find; install it, or choose"
        if name in LOGGER_TYPE_TO_CLASS
        else "is no tracker that accelerate knows; choose"
    )
    raise ValueError(f"--report_to {name} {lack} --report_to none, {', '.join(installed)} or all.")


def check_launcher() -> None:
    """Refuse the launcher's gradient accumulation, which would scale losses that are whole already."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise ValueError(
            f"`accelerate launch --gradient_accumulation_steps {steps}` is not supported: an optimizer step here "
            "covers so many timesteps of all trajectories. Leave it out, and give --gradient_accumulation_steps "
            "behind the script's name."
        )


def check_processes(config: RunConfig) -> None:
    """Refuse to shard a model over processes, and less work than there are processes."""
    for plugin in ("DeepSpeed", "FSDP", "Megatron_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{plugin.upper()}"):
            raise ValueError(
                f"{plugin.replace('_', '-')} is not supported: the base is frozen and the adapter is small, so "
                "every process holds both. Launch with `accelerate launch --multi_gpu`; --load_in_4bit and "
                "--gradient_checkpointing save memory."
            )
    count = processes().num_processes
    schedule = config.schedule
    shared = {
        "images_per_iteration": schedule.images_per_iteration,
        "retain_batch_size": config.update.retain_batch_size,
        "retain_rollouts": schedule.retain_rollouts,
        "warmup_rollouts": schedule.warmup_rollouts,
    }
    for name, value in shared.items():
        if value < count:
            raise ValueError(
                f"{count} processes cannot share --{name} {value}; raise it, or take fewer processes."
            )


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a run cannot change when it resumes, as JSON gives them back."""
    may_change = {setting.name for setting in settings_of(config) if setting.flag.may_change}
    settings = json.loads(json.dumps(config.public_settings()))
    return {name: value for name, value in settings.items() if name not in may_change}


def check_same_run(config: RunConfig, checkpoint: Checkpoint, inputs: dict[str, str | None]) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        inputs: of this run, by `training.inputs.describe_inputs`.
    """
    named = f"--resume_from_checkpoint {config.output.resume_from_checkpoint}"
    if "settings" not in checkpoint.numbers or "lora" not in checkpoint.groups:
        raise ValueError(f"{named} is not a checkpoint of this script.")
    if "inputs" not in checkpoint.numbers:
        raise ValueError(f"{named} is of version 0.1.0 of this script; resume it with that version.")
    now, then = fixed_settings(config), checkpoint.numbers["settings"]
    changed = what_differs(checkpoint.numbers["inputs"], inputs)
    changed += [
        f"--{name} was {then.get(name)} and is {value}"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"The checkpoint is of another run ({'; '.join(changed)}); resume with what that had, or start anew "
            "without it."
        )
