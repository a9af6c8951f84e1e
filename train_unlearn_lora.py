#!/usr/bin/env python
"""Train a LoRA adapter that makes a Stable Diffusion pipeline unable to draw a concept.

Critic-guided reinforcement unlearning (arXiv 2601.03213): denoising is a sequential decision process, a
noise-conditioned reward predictor, and a timestep-aware critic if asked, say what the noisy latent is worth
that a step leads to, and clipped policy-gradient updates move the adapter along the slopes of that value.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import signal
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DynamoBackend, ProjectConfiguration, gather_object, parse_flag_from_env, set_seed
from diffusers import UNet2DConditionModel
from diffusers.optimization import SchedulerType, get_scheduler
from PIL import Image
from tqdm.auto import tqdm

import canvas
from common.checkpoints import Checkpoint, list_checkpoints, load_checkpoint
from common.command_line import DiscreetParser, number, positive_int, whole_number
from common.errors import Unsound, friendly_errors, friendly_interrupts, friendly_memory
from common.files import write_aside
from common.memory import flags_to_try, out_of_memory, peak_memory_mb
from common.names import hub_id, public_name
from common.network import cached_revision
from common.processes import all_rows, anywhere, keep_in_step, own_batches, processes
from common.versions import versions
from critic.advantages import centre_within, explained_variance, normalize
from critic.critic import CRITICS, Critic
from critic.estimators import ADVANTAGES, SIGNALS, Estimator
from critic.network import ValueNetwork
from critic.pathwise import linear_advantages, scaled, slope_scale, value_slopes
from environment.build import add_environment_arguments, build_environment
from environment.environment import Environment, ForgetScore, RetainScore
from evaluation.examination import Examination, JudgeExamination, TeacherExamination
from evaluation.grid import Pair, before_after
from evaluation.judge import Judge
from evaluation.protocol import evaluate, grid_title, list_jobs, table
from hub.access import check_push
from hub.adapter import save_adapter, update_adapter_metadata
from hub.card import save_model_card
from hub.header import base_header, results_header
from hub.kohya import save_kohya
from hub.push import CRITIC_FILES, push_adapter, push_command
from pipelines.generate import adapter_disabled, evaluation_mode, generate
from pipelines.memory import DTYPES, add_memory_arguments, memory_options, read_quantization
from policy.lora import ADAPTER, add_lora, base_policy, is_identity, load_lora_state, lora_state
from policy.trajectory import Experience, Trajectory
from policy.update import UpdateConfig, UpdateStats, update_policy
from reward.arguments import uses_bundled_base
from training.control import RECOGNISABLE, Brake, StopSignal, adapt_coefficient
from training.diagnostics import Diagnostics
from training.interruption import Interruption, leave
from training.lock import LOCK_NAME, only_run
from training.plan import Amounts, costs_in_words, listing, probe
from training.run_state import AFTER_A_BRAKE, Progress, RunState
from training.soundness import what_is_no_number
from training.tracking import Tracking

logger = get_logger(__name__)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = DiscreetParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_environment_arguments(parser)
    parser.add_argument(
        "--base_model_id",
        help="Hub id of a base that is loaded from a local copy: what results, card and header call it. Default: the copy's name.",
    )
    parser.add_argument(
        "--critic_model_name_or_path",
        help="Critic made by `python -m critic.train`. Default: one is warmed up in the run.",
    )
    parser.add_argument(
        "--judge_name_or_path",
        help="Judge of the final figures for a base that is not the bundled one. Default: the teacher, marked as such.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("unlearned-lora"),
        help="Where adapter, results, pictures and checkpoints are written.",
    )
    parser.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="Write into an output directory that is not empty.",
    )
    parser.add_argument(
        "--output_kohya_format",
        action="store_true",
        help="Write the adapter for ComfyUI and AUTOMATIC1111 too.",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Say what would be done and about what it costs, from a short probe, and write nothing.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the whole run.")

    parser.add_argument(
        "--max_train_iterations",
        type=positive_int,
        default=40,
        help="Iterations of rollout and update at most.",
    )
    parser.add_argument(
        "--images_per_iteration",
        type=positive_int,
        default=32,
        help="Trajectories of forget prompts in an iteration; the processes share them.",
    )
    parser.add_argument(
        "--target_unlearning_accuracy",
        type=number,
        default=0.95,
        help="Stop once this share of the last iterations' images shows something else, recognisably, in place of the concept.",
    )
    parser.add_argument(
        "--patience",
        type=positive_int,
        default=3,
        help="Over how many iterations the target must be reached.",
    )
    parser.add_argument("--rank", type=int, default=8, help="Rank of the LoRA matrices.")
    parser.add_argument(
        "--lora_alpha",
        type=number,
        help="Scale of the LoRA update before division by the rank. Default: the rank.",
    )
    parser.add_argument(
        "--lora_target_modules",
        nargs="+",
        default=["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"],
        help="Endings of the modules to adapt.",
    )
    parser.add_argument("--learning_rate", type=number, default=1e-2, help="Learning rate of the adapter.")
    parser.add_argument(
        "--lr_scheduler",
        type=str,
        default="constant",
        choices=[s.value for s in SchedulerType if s.value != "piecewise_constant"],
        help="Schedule over the iterations.",
    )
    parser.add_argument(
        "--cooldown_updates",
        type=whole_number,
        default=3,
        help="Updates at the end of the run in which the learning rate falls to zero, on the last images; they draw none.",
    )
    parser.add_argument(
        "--lr_warmup_steps",
        type=whole_number,
        default=0,
        help="Iterations over which the learning rate rises.",
    )
    parser.add_argument(
        "--use_8bit_adam",
        action="store_true",
        help="Use bitsandbytes' 8-bit AdamW. A LoRA is small, so this saves little.",
    )
    parser.add_argument(
        "--adam_beta1",
        type=number,
        default=0.5,
        help="Decay of AdamW's first moment; what was right an iteration ago soon is not.",
    )
    parser.add_argument("--adam_beta2", type=number, default=0.99, help="Decay of AdamW's second moment.")
    parser.add_argument("--adam_weight_decay", type=number, default=1e-4, help="Weight decay of the adapter.")
    parser.add_argument("--adam_epsilon", type=number, default=1e-8, help="Epsilon of AdamW.")
    parser.add_argument(
        "--max_grad_norm", type=number, default=1.0, help="Norm that the gradient is clipped to."
    )
    parser.add_argument(
        "--gradient_accumulation_steps",
        type=positive_int,
        default=2,
        help="Timesteps in an optimizer step, each of all trajectories.",
    )
    parser.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="Trade about a fifth of the speed of updates for memory.",
    )
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        default="no",
        help="Precision of the frozen base; the adapter stays float32.",
    )
    parser.add_argument(
        "--allow_tf32", action="store_true", help="Allow TF32 matrix products on NVIDIA GPUs."
    )
    parser.add_argument(
        "--channels_last",
        action="store_true",
        help="Lay the UNet's convolutions out with the channels last, as tensor cores take them; the result differs by rounding.",
    )
    parser.add_argument(
        "--torch_compile",
        action="store_true",
        help="Compile the UNet, which takes minutes before the first iteration; `accelerate launch --dynamo_backend` and its mates say how.",
    )
    add_memory_arguments(parser)

    parser.add_argument(
        "--advantage",
        choices=ADVANTAGES,
        default="pathwise",
        help="What a denoising step is credited with: the slope of the noisy reward in the state it led to (pathwise), the change it made and how the "
        "image turned out (step), generalized advantage estimation (gae) and its ends (td, mc), or the finished image's reward alone (ddpo).",
    )
    parser.add_argument("--gae_lambda", type=number, default=0.9, help="Lambda of --advantage gae.")
    parser.add_argument(
        "--gamma",
        type=number,
        help="Discount over denoising steps. Default: 0 for --advantage pathwise and step, else 1.",
    )
    parser.add_argument(
        "--terminal_weight",
        type=number,
        help="Weight of the finished image's reward beside the advantage. Default: 1 for --advantage step, else 0.",
    )
    parser.add_argument(
        "--reward_signal",
        choices=SIGNALS,
        default="noisy",
        help="Reward every step with the change of its potential, or the last one alone.",
    )
    parser.add_argument(
        "--critic_type", choices=CRITICS, default="film", help="The critic, or a lesser one, for ablation."
    )
    parser.add_argument(
        "--advantage_clip",
        type=number,
        default=5.0,
        help="Clip of the normalised advantages; slopes are not clipped.",
    )
    parser.add_argument(
        "--clip_range",
        type=number,
        default=0.2,
        help="Clip of the importance ratio, in units of a step's own noise; with --advantage pathwise, of how far a mean may move.",
    )
    parser.add_argument(
        "--inner_epochs", type=positive_int, default=1, help="Passes over an iteration's trajectories."
    )
    parser.add_argument(
        "--replay_iterations",
        type=whole_number,
        default=0,
        help="Train on the trajectories of so many earlier iterations too, off policy, by importance ratios.",
    )
    parser.add_argument(
        "--target_kl",
        type=number,
        default=0.02,
        help="Stop an iteration's updates once the KL to the acting policy exceeds this.",
    )
    parser.add_argument(
        "--train_timestep_fraction",
        type=number,
        default=0.5,
        help="Share of the timesteps that is trained, drawn anew in every iteration.",
    )
    parser.add_argument(
        "--masked_steps",
        type=whole_number,
        default=2,
        help="How many of the last denoising steps are never trained.",
    )
    parser.add_argument(
        "--kl_coef", type=number, default=20.0, help="Weight of the KL to the base on retain prompts."
    )
    parser.add_argument(
        "--retain_kl_target",
        type=number,
        help="Adapt that weight to this KL: twice as much where it is passed, half as much far below. Default: fixed.",
    )
    parser.add_argument(
        "--anchor_kl_coef",
        type=number,
        default=1.0,
        help="Weight of the KL to the base under the nearest anchor, on forget prompts.",
    )
    parser.add_argument(
        "--adversarial_radius",
        type=number,
        default=0.5,
        help="Take that KL as well under the text that undoes the most within so much of the way from prompt to anchor, against words that are searched for. "
        "0 leaves it out, which saves a fifth of the time.",
    )
    parser.add_argument(
        "--retain_rollouts",
        type=positive_int,
        default=64,
        help="Rollouts of the base on retain prompts that the KL is taken on.",
    )
    parser.add_argument(
        "--retain_batch_size",
        type=positive_int,
        default=16,
        help="Retain states beside every timestep of an update, and retain images judged an iteration.",
    )
    parser.add_argument(
        "--max_retain_drop",
        type=number,
        default=0.2,
        help="Brake: how far the retain reward may fall below the base's, as a share of the distance between the concept and its anchors.",
    )
    parser.add_argument(
        "--max_retain_kl",
        type=number,
        default=0.3,
        help="Brake: bound of the KL to the base on retain states.",
    )
    parser.add_argument(
        "--max_step_kl",
        type=number,
        default=3.0,
        help="Brake: bound of the KL by which one iteration may move the policy; 0.1 to 1 is usual at first.",
    )
    parser.add_argument(
        "--max_brakes",
        type=whole_number,
        default=3,
        help="How often the brake may return to the last good state before the run ends there.",
    )

    parser.add_argument(
        "--critic_learning_rate", type=number, default=1e-3, help="Learning rate of the critic."
    )
    parser.add_argument(
        "--warmup_rollouts",
        type=positive_int,
        default=64,
        help="Rollouts of the base on forget prompts: the reward is calibrated on them, and the critic warmed up; "
        "without a critic the first iteration learns from them.",
    )
    parser.add_argument(
        "--critic_warmup_steps", type=whole_number, default=300, help="Optimizer steps of the warm-up."
    )
    parser.add_argument(
        "--critic_steps",
        type=whole_number,
        default=30,
        help="Optimizer steps of the critic after every iteration.",
    )
    parser.add_argument(
        "--critic_batch_size",
        type=positive_int,
        default=256,
        help="States in an optimizer step of the critic.",
    )
    parser.add_argument(
        "--critic_buffer_iterations", type=positive_int, default=4, help="Iterations the critic remembers."
    )

    parser.add_argument(
        "--validation_prompt",
        nargs="+",
        help="Prompts of the previews. Default: forget and retain prompts in turn.",
    )
    parser.add_argument(
        "--num_validation_images",
        type=positive_int,
        default=8,
        help="Images of a preview when no prompt is given, half of them of the concept.",
    )
    parser.add_argument(
        "--validation_steps",
        type=whole_number,
        default=10,
        help="Preview every so many iterations; 0 for none during training.",
    )
    parser.add_argument(
        "--validation_guidance_scale",
        type=number,
        help="Guidance of previews and final figures. Default: the pipeline's own.",
    )
    parser.add_argument(
        "--evaluation_seeds",
        type=int,
        nargs="*",
        help="Seeds of the final figures, an image a prompt and seed; the flag without a seed skips them. Default: 0 1 2, and for prompts that ask for the "
        "concept as many more as make 24 images.",
    )
    parser.add_argument(
        "--checkpointing_steps",
        type=whole_number,
        default=10,
        help="Write a checkpoint every so many iterations; 0 for none.",
    )
    parser.add_argument(
        "--checkpoints_total_limit", type=whole_number, default=2, help="How many checkpoints to keep."
    )
    parser.add_argument("--resume_from_checkpoint", help='A checkpoint of the output directory, or "latest".')
    parser.add_argument(
        "--report_to", default="tensorboard", help='Tracker: "tensorboard", "wandb", ... or "none".'
    )
    parser.add_argument(
        "--logging_dir", default="logs", help="Directory of the tracker within the output directory."
    )
    parser.add_argument(
        "--push_to_hub", action="store_true", help="Upload the adapter to the Hub once everything is written."
    )
    parser.add_argument(
        "--hub_model_id",
        help="Repository to upload to, made if there is none. Default: the last part of --output_dir.",
    )
    parser.add_argument("--hub_private_repo", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--hub_token",
        help="Token to upload with. Default: the one of `hf auth login`, which no process list shows.",
    )
    args = parser.parse_args(input_args)
    args.lora_alpha = args.lora_alpha or args.rank
    args.hub_model_id = args.hub_model_id or args.output_dir.resolve().name
    return args


# --- what an iteration is made of ----------------------------------------------------------------------


def generator_for(args: argparse.Namespace, purpose: int, iteration: int = 0) -> torch.Generator:
    """Every random choice has a generator of its own, the same on every process, so that resuming needs no
    random state."""
    return torch.Generator().manual_seed(((args.seed * 7919 + purpose) * 100_003 + iteration) * 1009 % 2**63)


WARMUP, RETAIN, ROLLOUT, UPDATE, CRITIC, COOLDOWN = range(6)


def check_output_dir(args: argparse.Namespace) -> None:
    """Refuse a directory that is not empty, unless told to overwrite it or to resume in it."""
    directory = args.output_dir
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output_dir {directory} is a file.")
    if (
        directory.is_dir()
        and any(path.name != LOCK_NAME for path in directory.iterdir())
        and not (args.overwrite_output_dir or args.resume_from_checkpoint)
    ):
        raise ValueError(
            f"{directory} is not empty; choose another --output_dir, add --overwrite_output_dir, or --resume_from_checkpoint latest."
        )


def update_config(args: argparse.Namespace, batch_size: int) -> UpdateConfig:
    return UpdateConfig(
        clip_range=args.clip_range,
        kl_coef=args.kl_coef,
        anchor_kl_coef=args.anchor_kl_coef,
        adversarial_radius=args.adversarial_radius,
        target_kl=args.target_kl,
        inner_epochs=args.inner_epochs,
        batch_size=batch_size,
        retain_batch_size=args.retain_batch_size,
        accumulation=args.gradient_accumulation_steps,
        timestep_fraction=args.train_timestep_fraction,
        masked_steps=args.masked_steps,
        guidance_scale=args.guidance_scale,
        max_grad_norm=args.max_grad_norm,
    )


def create_optimizer(args: argparse.Namespace, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    settings = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if args.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


def compile_unet(args: argparse.Namespace, accelerator: Accelerator, unet: UNet2DConditionModel) -> None:
    """Have the UNet compiled once it is asked for something, in place, if a flag of this script or of
    `accelerate launch` says so."""
    launched = accelerator.state.dynamo_plugin
    told = launched.backend != DynamoBackend.NO  # the launcher sets other settings in any case
    if args.torch_compile or told:
        # With and without gradient, with and without adapter, for each number of states that go through it
        # together.
        torch._dynamo.config.recompile_limit = 64
        unet.compile(**(launched.to_kwargs() if told else {}))


def choose_estimator(args: argparse.Namespace) -> Estimator:
    return Estimator.named(
        args.advantage, args.gae_lambda, args.gamma, args.terminal_weight, args.reward_signal
    )


def check_objective(args: argparse.Namespace) -> None:
    """Refuse settings of which one has no effect."""
    if args.advantage == "pathwise" and args.terminal_weight:
        raise ValueError(
            "--terminal_weight has no slope that --advantage pathwise could use; choose --gamma, or another --advantage."
        )
    if args.critic_model_name_or_path and not choose_estimator(args).uses_critic:
        raise ValueError(
            f"--advantage {args.advantage} asks no critic at its discount; add --gamma 0.5, or leave --critic_model_name_or_path out."
        )
    if choose_estimator(args).uses_critic and args.warmup_rollouts < 2:
        raise ValueError("--warmup_rollouts must be at least 2 for a critic: one of them is held out.")


def check_processes(args: argparse.Namespace) -> None:
    """Refuse to share a model out among processes, and less work than there are processes."""
    for plugin in ("DeepSpeed", "FSDP", "Megatron_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{plugin.upper()}"):
            raise ValueError(
                f"{plugin.replace('_', '-')} is not supported: the base is frozen and the adapter is small, so every process holds both. "
                "Launch with `accelerate launch --multi_gpu`; --load_in_4bit and --gradient_checkpointing save memory."
            )
    count = processes().num_processes
    for name in ("images_per_iteration", "retain_batch_size", "retain_rollouts", "warmup_rollouts"):
        if getattr(args, name) < count:
            raise ValueError(
                f"{count} processes cannot share --{name} {getattr(args, name)}; raise it, or take fewer processes."
            )


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that a run cannot change under way, as JSON gives them back."""
    return {
        name: value
        for name, value in json.loads(json.dumps(public_settings(args))).items()
        if name not in MAY_CHANGE
    }


def check_same_run(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Refuse to go on from a checkpoint of another run."""
    if "settings" not in checkpoint.numbers or "lora" not in checkpoint.groups:
        raise ValueError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint} is not a checkpoint of this script."
        )
    now, then = run_settings(args), checkpoint.numbers["settings"]
    changed = [
        f"--{name} was {then.get(name)} and is {value}"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"The checkpoint is of a run with other settings ({'; '.join(changed)}); resume with those, or start anew without it."
        )


def check_hub_arguments(args: argparse.Namespace) -> None:
    """Refuse a token that a tracker might publish, and a base id that is none."""
    if args.hub_token and args.report_to in ("wandb", "all"):
        raise ValueError(
            f"--report_to {args.report_to} together with --hub_token might expose the token; run `hf auth login` in place of --hub_token."
        )
    if args.base_model_id and not args.pretrained_model_name_or_path:
        raise ValueError(
            "--base_model_id names what --pretrained_model_name_or_path is a copy of; give both or neither."
        )
    if args.base_model_id and not hub_id(args.base_model_id):
        raise ValueError(
            f"--base_model_id {args.base_model_id} is not the id of a model on the Hub, which is OWNER/NAME."
        )


def create_critic(args: argparse.Namespace, env: Environment) -> Critic:
    """Load the critic that is named, or make one for this concept that begins with the reward predictor's
    trunk."""
    text_dim = env.table.pooled.shape[-1]
    if args.critic_model_name_or_path:
        network = ValueNetwork.from_pretrained(args.critic_model_name_or_path)
        network.check_fit(env.backbone.latent_shape, text_dim, env.backbone.pipeline_class)
    else:
        torch.manual_seed(args.seed)
        told_time, made_for = args.critic_type != "timestep_blind", env.backbone.pipeline_class
        network = ValueNetwork.from_predictor(env.predictor, text_dim, env.spec.concepts, told_time, made_for)
    network.to(env.kernel.stds.device)
    kind = args.critic_type if choose_estimator(args).uses_critic else "none"
    return Critic(
        network,
        len(env.table.prompts),
        env.kernel.num_steps,
        args.critic_learning_rate,
        args.critic_buffer_iterations,
        kind=kind,
    )


def warm_up_critic(
    args: argparse.Namespace,
    env: Environment,
    critic: Critic,
    trajectory: Trajectory,
    score: ForgetScore,
    generator: torch.Generator,
) -> None:
    """Fit the critic to what became of the base's trajectories of forget prompts."""
    order = torch.randperm(len(trajectory), generator=generator)
    count = max(1, len(order) // 4)
    held_out, learnt = order[:count], order[count:]
    observe(args, env, critic, trajectory[learnt], score.potentials[learnt])
    # A critic that was given is trained already; only its baselines and its trust belong to this run.
    critic.fit(
        0 if args.critic_model_name_or_path else args.critic_warmup_steps, args.critic_batch_size, generator
    )
    keep_in_step(critic.network)
    observe(args, env, critic, trajectory[held_out], score.potentials[held_out])
    check_critic(critic)


def observe(
    args: argparse.Namespace,
    env: Environment,
    critic: Critic,
    trajectory: Trajectory,
    potentials: torch.Tensor,
) -> None:
    """Show the critic trajectories and what became of them."""
    critic.observe(
        trajectory,
        env.table.pooled[trajectory.prompt_ids],
        potentials,
        choose_estimator(args).returns(potentials),
    )


def check_critic(critic: Critic) -> None:
    """
    Raises:
        Unsound: the critic holds something that is no number.
    """
    if not critic.is_finite():
        raise Unsound(
            "The critic's weights or baselines are no longer numbers; lower --critic_learning_rate, or train without a critic."
        )


def values_of(
    env: Environment, critic: Critic, trajectory: Trajectory, potentials: torch.Tensor
) -> torch.Tensor:
    """(B, T): the critic's value of every state that is acted on."""
    return critic.values(trajectory, env.table.pooled[trajectory.prompt_ids], potentials)


def estimate_advantages(
    args: argparse.Namespace, trajectory: Trajectory, potentials: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Advantages (B, T), centred within prompts and normalised."""
    advantages = choose_estimator(args).advantages(potentials, values)
    return normalize(centre_within(advantages, trajectory.prompt_ids), args.advantage_clip)


def slopes_of_values(
    args: argparse.Namespace, env: Environment, critic: Critic, trajectory: Trajectory
) -> torch.Tensor:
    """(B, T, C, H, W), where the latents are: how the value of each step changes with the state it led to
    (`critic.pathwise`)."""
    estimator = choose_estimator(args)

    def slopes(part: Trajectory) -> torch.Tensor:
        ids = part.prompt_ids
        text = env.table.pooled[ids]

        def value(x: torch.Tensor, state: int) -> torch.Tensor:
            potential = env.potential(x, state, ids)
            return estimator.action_value(
                potential, critic.state_value(x, state, env.kernel.timesteps[state], text, potential)
            )

        brought = replace(part, latents=part.latents.to(env.kernel.stds.device))
        return value_slopes(brought, value).to(part.latents.device)

    mine = torch.cat([slopes(trajectory[rows]) for rows in own_batches(len(trajectory), env.batch_size)])
    return all_rows(mine, len(trajectory))


def weighed_slopes(
    args: argparse.Namespace,
    env: Environment,
    critic: Critic,
    trajectory: Trajectory,
    score: ForgetScore,
    scale: torch.Tensor,
) -> torch.Tensor:
    """The same in units of `scale` (T,), times the share of the way to the anchors that each finished image
    still has to go.

    The push on a trajectory is the slope of -shortfall^2 / 2 rather than that of the reward: a reward
    predictor can be climbed for ever, by images that nobody would draw, but nothing is better than images of
    the anchors are.
    """
    slopes = slopes_of_values(args, env, critic, trajectory)
    left = env.reward.shortfall(score.terminal).to(slopes.device)
    return left[:, None, None, None, None] * scaled(slopes, scale.to(slopes.device))


def credit(
    args: argparse.Namespace,
    env: Environment,
    critic: Critic,
    base: Base,
    trajectory: Trajectory,
    score: ForgetScore,
    values: torch.Tensor,
) -> Experience:
    """What each step of fresh trajectories was worth: by its slopes if the base has a scale for them, or
    else by its advantage."""
    if base.slope_scale is None:
        return Experience(
            trajectory, estimate_advantages(args, trajectory, score.potentials, values), score.anchor_ids
        )
    slopes = weighed_slopes(args, env, critic, trajectory, score, base.slope_scale)
    return Experience(
        trajectory, linear_advantages(trajectory, slopes).to(env.kernel.stds.device), score.anchor_ids, slopes
    )


def critic_logs(
    env: Environment, values: torch.Tensor, returns: torch.Tensor, groups: torch.Tensor
) -> dict[str, float]:
    """The critic's explained variance within prompts, as a whole and for every denoising step; of values
    and returns (B, T), and prompts (B,)."""
    explained = explained_variance(centre_within(values, groups), centre_within(returns, groups)).tolist()
    steps = zip(env.kernel.timesteps[:-1].tolist(), explained, strict=True)
    return {"explained_variance": sum(explained) / len(explained)} | {
        f"explained_variance/t{t:04d}": value for t, value in steps
    }


def update_logs(env: Environment, stats: UpdateStats) -> dict[str, float]:
    """Diagnostics of an update, as a whole and for every denoising step, under stable names."""
    logs = {
        "first_ratio_deviation": stats.first_ratio_deviation,
        "skipped_updates": float(stats.skipped),
    }
    for name in (
        "clip_fraction",
        "approx_kl",
        "step_kl",
        "retain_kl",
        "anchor_kl",
        "worst_anchor_kl",
        "grad_norm",
    ):
        values = getattr(stats, name)
        logs[name] = sum(values) / len(values)
    for step, t in enumerate(env.kernel.timesteps[:-1].tolist()):
        if step in stats.by_step:
            rows = torch.tensor(stats.by_step[step]).mean(dim=0).tolist()
            logs |= dict(
                zip(
                    (f"ratio_mean/t{t:04d}", f"ratio_std/t{t:04d}", f"clip_fraction/t{t:04d}"),
                    rows,
                    strict=True,
                )
            )
    return logs


def advantage_logs(env: Environment, advantages: torch.Tensor) -> dict[str, float]:
    """Of advantages (B, T): the share of trajectories that teach nothing, and the mean size at every
    denoising step."""
    size = advantages.abs()
    logs = {
        "dead_samples": (size < 1e-6).all(dim=1).float().mean().item(),
        "advantage_size": size.mean().item(),
    }
    return logs | {
        f"advantage_size/t{t:04d}": size[:, step].mean().item()
        for step, t in enumerate(env.kernel.timesteps[:-1].tolist())
    }


# --- pictures and results ------------------------------------------------------------------------------


def validation_prompts(args: argparse.Namespace, env: Environment) -> list[tuple[str, bool]]:
    """Prompts of the preview, each with whether it asks for the concept."""
    if args.validation_prompt:
        return [(p, p in env.spec.forget_prompts) for p in args.validation_prompt]
    kept = args.num_validation_images // 2
    asked = args.num_validation_images - kept
    return [(p, True) for p in spread(env.spec.forget_prompts, asked)] + [
        (p, False) for p in spread(env.spec.retain_prompts, kept)
    ]


def spread(prompts: list[str], count: int) -> list[str]:
    """`count` prompts at a stride prime to the length of the list, which walks through all factors of a
    product alike."""
    stride = next(
        s
        for s in range(max(1, len(prompts) // max(1, count)), len(prompts) + 2)
        if math.gcd(s, len(prompts)) == 1
    )
    return [prompts[i * stride % len(prompts)] for i in range(min(count, len(prompts)))]


def draw_previews(args: argparse.Namespace, env: Environment, prompts: list[str]) -> list[Image.Image]:
    """One image a prompt at a fixed seed, drawn by the pipeline as a user would call it."""
    with env.at_hand(), evaluation_mode(env.pipe):
        return [
            image
            for _, _, image in generate(
                env.pipe,
                prompts,
                [args.seed],
                guidance_scale=args.validation_guidance_scale,
                batch_size=env.batch_size,
            )
        ]


def preview_pairs(
    args: argparse.Namespace,
    env: Environment,
    prompts: list[tuple[str, bool]],
    before: list[Image.Image] | None = None,
) -> list[Pair]:
    """The prompts drawn by the base (unless `before` is given) and with the adapter, from the same noise."""
    texts = [p for p, _ in prompts]
    if before is None:
        with adapter_disabled(env.pipe):
            before = draw_previews(args, env, texts)
    after = draw_previews(args, env, texts)
    return [Pair(prompt, b, a, forget) for (prompt, forget), b, a in zip(prompts, before, after, strict=True)]


def log_validation(
    args: argparse.Namespace,
    tracking: Tracking,
    env: Environment,
    prompts: list[tuple[str, bool]],
    before: list[Image.Image],
    iteration: int,
) -> None:
    """Write the preview, adapter beside base, as a picture and to tensorboard."""
    path = args.output_dir / "previews" / f"iteration-{iteration:04d}.png"
    before_after(
        preview_pairs(args, env, prompts, before),
        path,
        f"Erasing {', '.join(env.spec.concepts)}: iteration {iteration}",
    )
    with Image.open(path) as image:
        tracking.show("validation", np.asarray(image.convert("RGB")), iteration)


def choose_examination(args: argparse.Namespace, env: Environment) -> Examination:
    """The judge of the final figures: the one named, the bundled one for the bundled base, else the teacher,
    marked as such.

    Raises:
        ValueError: the judge that is named cannot be loaded or knows nothing of the concept.
    """
    encode_text = (
        env.teacher.encode_text if env.teacher.unit_length else None
    )  # a classifier's texts lie near to nothing but its labels
    if args.judge_name_or_path:
        judge = Judge.from_pretrained(args.judge_name_or_path)
        return JudgeExamination(
            judge, env.spec.concepts, public_name(args.judge_name_or_path), encode_text=encode_text
        )
    if uses_bundled_base(args):
        try:
            return JudgeExamination(
                Judge.from_pretrained(canvas.JUDGE),
                env.spec.concepts,
                public_name(canvas.JUDGE),
                encode_text=encode_text,
            )
        except ValueError as error:
            logger.warning(f"{error} The figures come from the teacher.")
    return TeacherExamination(env.teacher, env.spec)


def write_results(
    args: argparse.Namespace,
    env: Environment,
    examination: Examination | None,
    progress: Progress,
    last: dict[str, float],
) -> dict[str, Any]:
    """Evaluate base and adapter, which the processes share; the first writes `results.json`,
    `before_after.png` and the model card and returns results."""
    results: dict[str, Any] = {
        "concept": env.spec.concepts,
        "base_model_name_or_path": base_name(args),
        "revision": args.revision,
        "pipeline_class": env.backbone.pipeline_class,
    }
    state = processes()
    if examination is not None:
        with env.at_hand():
            evaluation = evaluate(
                env.pipe,
                examination,
                args.evaluation_seeds,
                guidance_scale=args.validation_guidance_scale,
                batch_size=env.batch_size,
                progress=state.is_local_main_process,
                processes=(state.process_index, state.num_processes),
                gather=gather_object,
            )
        if evaluation is None:
            return {}
        results |= evaluation.results
        pairs = evaluation.pairs
        print(table(results))
    elif state.is_main_process:
        pairs = preview_pairs(args, env, validation_prompts(args, env))
    else:
        return {}
    results |= {
        "reward_model": public_name(args.reward_model_name_or_path)
        if args.reward_model_name_or_path
        else "bundled"
        if uses_bundled_base(args)
        else "trained in the run",
        "reward_model_revision": cached_revision(args.reward_model_name_or_path),
        "critic_model": public_name(args.critic_model_name_or_path)
        if args.critic_model_name_or_path
        else None,
        "critic_model_revision": cached_revision(args.critic_model_name_or_path),
        "forget_prompts": env.spec.forget_prompts,
        "retain_prompts": env.spec.retain_prompts,
        "settings": public_settings(args),
        "training": {
            "iterations": progress.iteration,
            "images": progress.images,
            "unet_samples": progress.unet_samples,
            "seconds": round(progress.seconds, 1),
            "peak_memory_mb": progress.peak_memory_mb,
            "stopped_by": progress.stopped_by,
            "brakes": progress.brakes,
            "first_ratio_deviation": progress.first_ratio_deviation,
            "last_iteration": last,
        },
    }
    write_aside(
        args.output_dir / "results.json",
        lambda path: path.write_text(
            json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        ),
    )
    title = grid_title(results) if examination else f"Erasing {', '.join(env.spec.concepts)}"
    before_after(pairs, args.output_dir / "before_after.png", title)
    save_model_card(results, args.output_dir)
    return results


MAY_CHANGE = {
    "max_train_iterations",
    "target_unlearning_accuracy",
    "patience",
    "cooldown_updates",
    "max_brakes",
    "train_batch_size",
    "gradient_checkpointing",
    "channels_last",
    "torch_compile",
    "offload_models",
    "offload_trajectories",
    "base_model_id",
    "judge_name_or_path",
    "output_kohya_format",
    "validation_prompt",
    "num_validation_images",
    "validation_steps",
    "validation_guidance_scale",
    "evaluation_seeds",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "report_to",
}
"""What may be different where a run is resumed: when it ends, how much memory it may take, and what is
shown and kept of it."""
LOCAL_ARGUMENTS = {
    "dry_run",
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "forget_prompts",
    "retain_prompts",
    "anchor_prompts",
    "reward_spec",
    "concept_images",
    "clip_pretrained",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
}


def public_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line without what is local to this machine."""
    settings = {
        k: (public_name(v) if k.endswith("name_or_path") and v else v)
        for k, v in vars(args).items()
        if k not in LOCAL_ARGUMENTS
    }
    if args.bnb_quantization_config_path:
        settings["bnb_quantization_config_path"] = read_quantization(args.bnb_quantization_config_path)
    settings["clip_model"] = args.clip_model and public_name(args.clip_model.removeprefix("local-dir:"))
    return settings


def tracker_config(args: argparse.Namespace) -> dict[str, int | float | str]:
    """The command line as a tracker shows it, which may be in public."""
    return {k: v for k, v in vars(args).items() if isinstance(v, int | float | str) and k != "hub_token"}


def base_name(args: argparse.Namespace) -> str:
    """How results, card and header call the base."""
    return args.base_model_id or public_name(args.pretrained_model_name_or_path or canvas.PIPELINE)


def adapter_metadata(args: argparse.Namespace, env: Environment) -> dict[str, str]:
    """What the header of the adapter file can say before the evaluation."""
    known = {
        "concept": env.spec.concepts,
        "base_model_name_or_path": base_name(args),
        "revision": args.revision,
        "settings": public_settings(args),
        "versions": versions(),
    }
    return base_header(env.pipe) | results_header(known)


# --- the run --------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a run is made of, in the order of `train`'s arguments."""

    accelerator: Accelerator
    env: Environment
    examination: Examination | None
    optimizer: Any
    critic: Critic
    checkpoint: Checkpoint | None


def prepare(args: argparse.Namespace) -> Parts:
    """Check the arguments, load everything, and attach the adapter: all that a user can get wrong happens
    here.

    Raises:
        ValueError: something named is missing or does not fit; nothing has been written then.
    """
    check_output_dir(args)
    if args.masked_steps >= args.num_inference_steps:
        raise ValueError(
            f"--masked_steps {args.masked_steps} leaves none of the {args.num_inference_steps} denoising steps to train."
        )
    check_objective(args)
    check_hub_arguments(args)
    check_processes(args)
    memory = memory_options(args, processes().device)
    checkpoint = (
        load_checkpoint(args.output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    )
    project = ProjectConfiguration(
        project_dir=str(args.output_dir), logging_dir=str(args.output_dir / args.logging_dir)
    )
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=project,
    )
    if args.push_to_hub and accelerator.is_main_process:
        check_push(args.hub_model_id, args.hub_token)
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
    )
    logging.getLogger(__name__).setLevel(logging.INFO)
    if not accelerator.is_local_main_process:
        transformers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.set_verbosity_error()
    set_seed(args.seed)
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    env = build_environment(args, accelerator.device, DTYPES[accelerator.mixed_precision], memory)
    args.train_batch_size = env.batch_size  # for the record, and for advice where memory runs out
    with env.at_hand():
        examination = choose_examination(args, env) if args.evaluation_seeds != [] else None
    critic = create_critic(args, env)
    unet = env.pipe.unet
    for module in env.backbone.modules:
        module.requires_grad_(False)
    set_seed(args.seed)  # again: the adapter begins the same whatever critic was drawn before it
    parameters = add_lora(unet, args.rank, args.lora_alpha, args.lora_target_modules)
    if checkpoint:
        check_same_run(args, checkpoint)
        load_lora_state(unet, checkpoint.groups["lora"])  # one that does not fit is refused here
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.channels_last:
        unet.to(memory_format=torch.channels_last)
    optimizer = accelerator.prepare(create_optimizer(args, parameters))
    compile_unet(args, accelerator, unet)
    accelerator.wait_for_everyone()  # before anything is written where another process looks whether it is empty
    return Parts(accelerator, env, examination, optimizer, critic, checkpoint)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    env: Environment,
    examination: Examination | None,
    optimizer: Any,
    critic: Critic,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Learn; then save the adapter, evaluate it and write the card. Returns what results.json says, on the
    main process.

    Raises:
        SystemExit: it was interrupted, and what it had learnt is in a checkpoint or, after the last
            iteration, in the adapter.
    """
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tracking = Tracking(accelerator)
    tracking.start("train_unlearn_lora", tracker_config(args))
    with Interruption() as interruption:
        progress, logs = learn(args, accelerator, env, optimizer, critic, checkpoint, interruption, tracking)
    logger.info(f"Stopped after {progress.iteration} iterations: {progress.stopped_by}")
    if progress.stopped_by == OUT_OF_ITERATIONS and logs["replaced"] < args.target_unlearning_accuracy:
        logger.warning(what_is_missing(args, logs))
    if accelerator.is_main_process:
        save_adapter(args.output_dir, env.pipe.unet, ADAPTER, adapter_metadata(args, env))
        if args.output_kohya_format:
            save_kohya(args.output_dir)
        if critic.kind != "none":
            critic.network.save_pretrained(args.output_dir / "critic")
        else:
            for stale in CRITIC_FILES:  # of a run that is being overwritten
                (args.output_dir / stale).unlink(missing_ok=True)
    if anywhere(interruption.received is not None):  # when the last iteration was under way
        tracking.end()
        leave(
            interruption.received or signal.SIGTERM,
            f"the adapter is complete in {args.output_dir}, but not evaluated; `python -m evaluation --adapter {args.output_dir}` does that.",
        )
    results = write_results(args, env, examination, progress, logs)
    if accelerator.is_main_process:
        update_adapter_metadata(args.output_dir, results_header(results))
        logger.info(f"Wrote {args.output_dir}: load it with pipe.load_lora_weights({str(args.output_dir)!r})")
    tracking.end()
    return results


def learn(
    args: argparse.Namespace,
    accelerator: Accelerator,
    env: Environment,
    optimizer: Any,
    critic: Critic,
    checkpoint: Checkpoint | None,
    interruption: Interruption,
    tracking: Tracking,
) -> tuple[Progress, dict[str, float]]:
    """The loop: roll out, score, judge, estimate advantages, update, refresh the critic. Returns the counters
    and the last figures.

    Raises:
        SystemExit: it was interrupted, and what it had learnt is in a checkpoint.
    """
    unet = env.pipe.unet
    config = update_config(args, env.batch_size)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_iterations,
    )

    started = time.perf_counter()
    with base_policy(unet):
        base = measure_base(args, env, critic)
        prompts = validation_prompts(args, env)
        before = (
            draw_previews(args, env, [p for p, _ in prompts])
            if accelerator.is_main_process and args.validation_steps
            else []
        )
    brake = Brake(base.least_contrast, args.max_retain_drop, args.max_retain_kl, args.max_step_kl)
    stop = StopSignal(args.target_unlearning_accuracy, args.patience)
    rollouts = args.retain_rollouts + args.warmup_rollouts
    elapsed = time.perf_counter() - started
    progress = Progress(
        images=rollouts,
        unet_samples=2 * env.kernel.num_steps * rollouts,
        seconds=elapsed,
        kl_coef=args.kl_coef,
    )
    state = RunState(
        unet,
        optimizer,
        lr_scheduler,
        critic,
        deque(maxlen=args.replay_iterations),
        progress,
        lora_state(unet),
    )
    diagnostics, reason = Diagnostics(args.output_dir / "diagnostics.jsonl"), None

    if checkpoint:
        state.restore(checkpoint, accelerator.device, args.offload_trajectories)
        progress = state.progress
        stop.recent = progress.replaced
        logger.info(f"Resuming after iteration {progress.iteration}")
    elif accelerator.is_main_process:
        for stale in list_checkpoints(args.output_dir):  # of a run that is being overwritten
            shutil.rmtree(stale)

    if accelerator.is_main_process:
        diagnostics.begin(progress.iteration)
    log_start(accelerator, env, base.acted[-1])
    bar = tqdm(
        total=args.max_train_iterations,
        initial=progress.iteration,
        desc="Iterations",
        disable=not accelerator.is_local_main_process,
    )
    while True:
        started = time.perf_counter()
        iteration = progress.iteration
        if (
            iteration == 0 and not choose_estimator(args).uses_critic
        ):  # a critic would be asked about what it has learnt by heart
            trajectory, score, logs = base.acted
        else:
            trajectory, score, logs = measure_policy(args, env, iteration, base.recognisable)
            progress.images += args.images_per_iteration + args.retain_batch_size
            progress.unet_samples += (
                2 * env.kernel.num_steps * (args.images_per_iteration + args.retain_batch_size)
            )

        wrong, was_good = what_is_no_number(logs), reason is not None
        if wrong and was_good:
            raise Unsound(f"With the last good state of the adapter too, {wrong}.")
        reason = (
            brake.reason(logs["retain_drop"], progress.retain_kl, progress.step_kl, logs["contrast"])
            or wrong
            or None
        )
        if reason:
            progress.brakes += 1
            logger.warning(
                f"Brake: {reason}; back to the last good state at {AFTER_A_BRAKE:g} times the learning rate."
            )
            if (
                progress.brakes > args.max_brakes
                and not math.isfinite(progress.step_kl)
                and is_identity(state.good)
            ):
                raise Unsound(f"The adapter has learnt nothing: {reason}.")
            state.go_back()
            stop.recent = []
        else:
            state.keep()
        progress.stopped_by = why_stop(
            args, progress, reason, reason is None and stop.update(logs["replaced"])
        )
        progress.replaced = stop.recent
        if progress.stopped_by:
            if wrong and (
                still := what_is_no_number(measure_policy(args, env, iteration + 1, base.recognisable)[-1])
            ):
                raise Unsound(f"With the last good state of the adapter too, {still}.")
            if reason is None and args.cooldown_updates:
                logger.info(f"Cooling down: {args.cooldown_updates} updates")
                fresh = credit(
                    args,
                    env,
                    critic,
                    base,
                    trajectory,
                    score,
                    values_of(env, critic, trajectory, score.potentials),
                )
                cooled = cool_down(
                    args,
                    accelerator,
                    env,
                    optimizer,
                    replace(config, kl_coef=progress.kl_coef),
                    fresh,
                    base.retain,
                )
                progress.unet_samples += sum(stats.unet_samples for stats in cooled)
                skipped = any(stats.skipped for stats in cooled)
                if too_far := brake.reason(
                    0.0, cooled[-1].retain_kl[-1], math.nan if skipped else cooled[-1].step_kl[-1], math.inf
                ):
                    logger.warning(f"The cool-down is taken back: {too_far}.")
                    load_lora_state(unet, state.good)
                else:
                    logs |= {
                        f"cooldown_{name}": getattr(cooled[-1], name)[-1]
                        for name in ("retain_kl", "anchor_kl", "step_kl")
                    }
            progress.seconds += time.perf_counter() - started
            tracking.log(logs, iteration)
            if accelerator.is_main_process:
                diagnostics.write(iteration, logs)
            break

        values = values_of(env, critic, trajectory, score.potentials)
        if critic.kind != "none":
            logs |= critic_logs(
                env, values, choose_estimator(args).returns(score.potentials), trajectory.prompt_ids
            )
        if not reason:
            fresh = credit(args, env, critic, base, trajectory, score, values)
            generator = generator_for(args, UPDATE, iteration)
            stats = update_policy(
                unet,
                env.kernel,
                env.table,
                [fresh, *state.replay],
                base.retain,
                optimizer,
                accelerator,
                replace(config, kl_coef=progress.kl_coef),
                generator,
            )
            state.replay.append(fresh)
            lr_scheduler.step()
            progress.retain_kl = stats.retain_kl[-1]
            progress.step_kl = stats.step_kl[-1] if stats.skipped < len(stats.grad_norm) else math.nan
            if progress.first_ratio_deviation is None:
                progress.first_ratio_deviation = stats.first_ratio_deviation
            progress.unet_samples += stats.unet_samples
            logs |= update_logs(env, stats) | advantage_logs(env, fresh.advantages)
            logs |= {"learning_rate": lr_scheduler.get_last_lr()[0], "kl_coef": progress.kl_coef}
            if args.retain_kl_target:
                progress.kl_coef = adapt_coefficient(
                    progress.kl_coef, progress.retain_kl, args.retain_kl_target
                )
        if not wrong:
            observe(args, env, critic, trajectory, score.potentials)
        if critic.kind != "none":
            logs["critic_loss"] = critic.fit(
                args.critic_steps, args.critic_batch_size, generator_for(args, CRITIC, iteration)
            )
            keep_in_step(critic.network)
            check_critic(critic)

        progress.iteration += 1
        progress.seconds += time.perf_counter() - started
        bar.update()
        bar.set_postfix({name: f"{logs[key]:.3g}" for name, key in BAR.items() if key in logs})
        tracking.log(logs, iteration)
        if accelerator.is_main_process:
            diagnostics.write(iteration, logs)
            if args.validation_steps and progress.iteration % args.validation_steps == 0:
                log_validation(args, tracking, env, prompts, before, progress.iteration)
        interrupted = anywhere(interruption.received is not None)
        due = bool(args.checkpointing_steps) and progress.iteration % args.checkpointing_steps == 0
        if accelerator.is_main_process and (due or interrupted):
            state.save(args.output_dir, run_settings(args), args.checkpoints_total_limit)
        accelerator.wait_for_everyone()
        if interrupted:
            tracking.end()
            leave(
                interruption.received or signal.SIGTERM,
                f"stopped after iteration {progress.iteration}, which is saved; the same command with --resume_from_checkpoint latest goes on.",
            )
    bar.close()
    progress.peak_memory_mb = peak_memory_mb()
    return progress, logs


def cool_down(
    args: argparse.Namespace,
    accelerator: Accelerator,
    env: Environment,
    optimizer: Any,
    config: UpdateConfig,
    experience: Experience,
    retain: Trajectory,
) -> list[UpdateStats]:
    """Updates on the last trajectories with a learning rate that falls from half of what it is to zero.

    A constant rate leaves the adapter jittering about what it is held to; a rate that falls lets it settle
    there. It bounds the way too, so the updates do not end at `target_kl`.
    """
    rates, found = [group["lr"] for group in optimizer.param_groups], []
    for turn in range(args.cooldown_updates):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / 2 * (1 - turn / args.cooldown_updates)
        generator = generator_for(args, COOLDOWN, turn)
        unbounded = replace(config, target_kl=math.inf)
        found.append(
            update_policy(
                env.pipe.unet,
                env.kernel,
                env.table,
                [experience],
                retain,
                optimizer,
                accelerator,
                unbounded,
                generator,
            )
        )
    return found


BAR = {
    "forgotten": "forgotten",
    "replaced": "replaced",
    "forget": "forget_reward",
    "retain": "retain_reward",
    "kl": "retain_kl",
    "ev": "explained_variance",
    "clip": "clip_fraction",
}
"""The figures that matter, by their name in the progress bar."""


@dataclass
class Base:
    """What the base is before anything is learnt.

    Attributes:
        retain: its trajectories of retain prompts, which the KL holds to.
        recognisable: the cosine with its nearest anchor from which on an image counts as showing something.
        least_contrast: what the plainest of its prompts has, as a mean over that prompt's images; a concept
            may be replaced by that.
        acted: its trajectories of forget prompts, with score and figures; without a critic the first
            iteration learns from these.
        slope_scale: (T,) the scale of its slopes if these are asked for.
    """

    retain: Trajectory
    recognisable: float
    least_contrast: float
    acted: tuple[Trajectory, ForgetScore, dict[str, float]]
    slope_scale: torch.Tensor | None


def measure_base(args: argparse.Namespace, env: Environment, critic: Critic) -> Base:
    """Roll the base out, calibrate the reward on its images and warm the critic up."""
    generator = generator_for(args, RETAIN)
    retain = env.collect(env.draw(env.retain_ids, args.retain_rollouts, generator), generator)
    generator = generator_for(args, WARMUP)
    forget = env.collect(env.draw(env.forget_ids, args.warmup_rollouts, generator), generator)
    forget_images, retain_images = env.calibrate(forget, retain)
    score, check = env.score_forget(forget, forget_images), env.score_retain(retain, retain_images)
    wrong = what_is_no_number(iteration_figures(env, score, check, recognisable=0.0))
    if wrong:
        raise Unsound(f"Nothing can be learnt from the base: {wrong}.")
    warm_up_critic(args, env, critic, forget, score, generator)
    warn_of_other_things(env, score)
    shown = ((forget, forget_images), (retain, retain_images))
    least_contrast = min(
        images.contrast[rollouts.prompt_ids == i].mean().item()
        for rollouts, images in shown
        for i in rollouts.prompt_ids.unique()
    )
    recognisable = check.reward.mean().item() - RECOGNISABLE * env.reward.contrast
    scale = (
        slope_scale(slopes_of_values(args, env, critic, forget), env.kernel.stds)
        if choose_estimator(args).pathwise
        else None
    )
    figures = iteration_figures(env, score, check, recognisable)
    if scale is not None and not scale.isfinite().all():
        raise Unsound(
            "The slopes of the reward predictor or the critic are no numbers; make it anew, or choose another --advantage."
        )
    return Base(retain, recognisable, least_contrast, (forget, score, figures), scale)


def measure_policy(
    args: argparse.Namespace, env: Environment, iteration: int, recognisable: float
) -> tuple[Trajectory, ForgetScore, dict[str, float]]:
    """Roll the policy out on forget prompts, to learn from, and on a few retain prompts, to watch."""
    generator = generator_for(args, ROLLOUT, iteration)
    trajectory = env.collect(env.draw(env.forget_ids, args.images_per_iteration, generator), generator)
    score = env.score_forget(trajectory)
    check = env.score_retain(
        env.collect(env.draw(env.retain_ids, args.retain_batch_size, generator), generator)
    )
    return trajectory, score, iteration_figures(env, score, check, recognisable)


def iteration_figures(
    env: Environment, score: ForgetScore, check: RetainScore, recognisable: float
) -> dict[str, float]:
    """Mean figures of an iteration's images.

    An image counts as replaced if the concept is gone and its nearest anchor's cosine is at least
    `recognisable`.
    """
    return {
        "forget_reward": score.terminal.mean().item(),
        "noisy_reward": score.potentials[:, :-1].mean().item(),
        "shortfall": env.reward.shortfall(score.terminal).mean().item(),
        "forgotten": score.forgotten.float().mean().item(),
        "replaced": (score.forgotten & (score.replacement >= recognisable)).float().mean().item(),
        "replacement": score.replacement.mean().item(),
        "contrast": score.contrast.mean().item(),
        "retain_reward": check.reward.mean().item(),
        "retain_drop": check.drop.mean().item(),
        "recognised": check.recognised.float().mean().item(),
    }


def why_stop(args: argparse.Namespace, progress: Progress, brake: str | None, target_reached: bool) -> str:
    """The reason to end the run here, or an empty text; `brake` is that of a brake in this iteration."""
    if target_reached:
        return f"{100 * args.target_unlearning_accuracy:g} % of the images of the last {args.patience} iterations showed something else instead"
    if progress.brakes > args.max_brakes:
        return f"the brake was needed more than {args.max_brakes} times, the last time because {brake}; the adapter is the last good state"
    if progress.iteration >= args.max_train_iterations:
        return OUT_OF_ITERATIONS
    return ""


OUT_OF_ITERATIONS = "--max_train_iterations"


def what_is_missing(args: argparse.Namespace, last: dict[str, float]) -> str:
    """What a run that is out of iterations has come to, and how to go on."""
    longer = f"--max_train_iterations {2 * args.max_train_iterations}"
    return (
        f"{100 * (1 - last['forgotten']):.0f} % of the last images still show the concept, and {100 * (last['forgotten'] - last['replaced']):.0f} % "
        f"nothing that has a name in its place. If these figures were falling, "
        + (
            f"the same command with --resume_from_checkpoint latest {longer} goes on; "
            if list_checkpoints(args.output_dir)
            else f"take {longer}; "
        )
        + "if they hardly moved, begin anew with four times the --learning_rate: what is too much is taken back."
    )


def warn_of_other_things(env: Environment, base: ForgetScore) -> None:
    """Say what else the base draws for the concept's prompts, if it often does: an ambiguous word, or one
    it does not know."""
    seen = Counter(env.table.prompts[i] for i in base.anchor_ids[base.forgotten].tolist())
    for text, count in seen.most_common(3):
        if count >= OTHER_THINGS * len(base.forgotten):
            logger.warning(
                f'{100 * count / len(base.forgotten):.0f} % of what the base draws for the concept looks rather like "{text}". '
                "If that is to go too, name it in --concept; if not, say what you mean in --forget_prompts FILE."
            )


OTHER_THINGS = 0.1
"""Share of the base's images of a concept from which on what else they show is worth a warning."""


def log_start(accelerator: Accelerator, env: Environment, base: dict[str, float]) -> None:
    """Say what is about to be trained, and warn of a concept that the base does not draw."""
    shown = 100 * (1 - base["forgotten"])
    logger.info("***** Running training *****")
    logger.info(f"  Concept = {', '.join(env.spec.concepts)}")
    logger.info(
        f"  Forget prompts = {len(env.spec.forget_prompts)}, retain prompts = {len(env.spec.retain_prompts)}"
    )
    logger.info(
        f"  Trainable parameters = {sum(p.numel() for p in env.pipe.unet.parameters() if p.requires_grad):,}"
    )
    logger.info(f"  Processes = {accelerator.num_processes}, device = {accelerator.device}")
    logger.info(
        f"  Base: {shown:.1f} % of its images of the concept show it, {100 * base['recognised']:.1f} % of the others their own prompt"
    )
    for concept in env.spec.unnamed:
        logger.warning(
            f'No known prompt names "{concept}"; it is asked for as one asks for its kind, {env.spec.kinds[env.spec.concepts.index(concept)]}. '
            "Give prompts the base draws with --forget_prompts FILE, or the kind with --concept_kind."
        )
    for concept, texts in env.spec.confusable.items():
        logger.warning(
            f'CLIP hardly tells "{concept}" from {", ".join(texts[:5])}; these are neither erased nor retained. '
            "Name them in --concept to erase them too, or in --retain_prompts FILE to keep them."
        )
    if shown < 50:
        logger.warning(
            f"The base draws the concept in only {shown:.0f} % of the images that ask for it, as the teacher sees it. Is it spelled as the base knows it?"
        )


def plan(args: argparse.Namespace, parts: Parts) -> dict[str, str]:
    """What a run would do, by what it is called; the costs come from a probe that rolls out and learns
    from a few images."""
    accelerator, env, examination, optimizer, *_ = parts
    generator = torch.Generator().manual_seed(args.seed)
    count = max(accelerator.num_processes, min(env.batch_size, args.images_per_iteration, PROBED))
    retain = env.collect(env.draw(env.retain_ids, count, generator), generator)
    forget = env.draw(env.forget_ids, count, generator)
    rolled_out: list[Trajectory] = []

    def draw() -> None:
        rolled_out.append(env.collect(forget, generator))

    def learn() -> None:
        trajectory = rolled_out[0]
        slopes = torch.zeros_like(trajectory.means) if choose_estimator(args).pathwise else None
        nothing = Experience(trajectory, torch.zeros_like(trajectory.log_probs), retain.prompt_ids, slopes)
        update_policy(
            env.pipe.unet,
            env.kernel,
            env.table,
            [nothing],
            retain,
            optimizer,
            accelerator,
            update_config(args, env.batch_size),
            generator,
        )

    costs = probe(draw, learn, count, accelerator.device)
    amounts = Amounts(
        before=args.retain_rollouts + args.warmup_rollouts,
        drawn=args.images_per_iteration + args.retain_batch_size,
        learnt=args.images_per_iteration,
        iterations=args.max_train_iterations,
        cooldown=args.cooldown_updates,
        evaluated=2 * len(list_jobs(examination, args.evaluation_seeds)) if examination else 0,
        evaluation_steps=examination.num_inference_steps if examination else 0,
        steps=env.kernel.num_steps,
    )
    anchors = sorted({text for row in env.spec.anchors for text in row})
    return {
        "Concept": ", ".join(env.spec.concepts)
        + (f" ({', '.join(sorted(set(env.spec.kinds)))})" if env.spec.kinds else ""),
        "To forget": listing(env.spec.forget_prompts),
        "To keep": listing(env.spec.retain_prompts),
        "In its place": listing(anchors),
        "Neither": "; ".join(f"{concept}: {listing(texts)}" for concept, texts in env.spec.confusable.items())
        or "nothing",
        "Base": base_name(args),
        "Judge": examination.name if examination else "none",
        "Objective": f"--advantage {args.advantage}, KL {args.kl_coef:g} on what is kept and {args.anchor_kl_coef:g} on what takes the concept's place",
        "Policy": f"LoRA of rank {args.rank}, {sum(p.numel() for group in optimizer.param_groups for p in group['params']):,} parameters",
        "Ends": f"once {100 * args.target_unlearning_accuracy:g} % of {args.patience} iterations' images show something else, "
        f"after {args.max_train_iterations} iterations at most",
        **costs_in_words(amounts, costs),
        "Writes to": str(args.output_dir),
    }


PROBED = 16
"""Images at most that the costs are measured on."""


def main(args: argparse.Namespace) -> None:
    def advice() -> str:
        on_gpu = processes().device.type != "cpu"
        return out_of_memory(flags_to_try(args, on_gpu), on_gpu)

    with friendly_memory(advice):
        run(args)


def run(args: argparse.Namespace) -> None:
    """A dry run, or a run and its upload."""
    if args.dry_run:
        with friendly_errors():
            parts = prepare(args)
            planned = plan(args, parts)
        if parts.accelerator.is_main_process:
            print("\n".join(f"{name:<14}{text}" for name, text in planned.items()))
        return
    with ExitStack() as stack:
        with friendly_errors():
            parts = prepare(args)
            if parts.accelerator.is_main_process:
                stack.enter_context(only_run(args.output_dir))
        saved = f"What has been saved is in {args.output_dir}; go on with --resume_from_checkpoint latest."
        with friendly_interrupts(saved if args.checkpointing_steps else ""):
            train(args, *parts)
        if args.push_to_hub and parts.accelerator.is_main_process:
            push(args)


def push(args: argparse.Namespace) -> None:
    """Upload what the run has written; where that fails the run ends with the reason and the command that
    tries again."""
    private = args.hub_private_repo or None
    again = f"`{push_command(args.output_dir, args.hub_model_id, private)}` uploads the adapter."
    with friendly_errors(), friendly_interrupts(again):
        address = push_adapter(args.output_dir, args.hub_model_id, token=args.hub_token, private=private)
        logger.info(f"Uploaded to {address}")


if __name__ == "__main__":
    main(parse_args())
