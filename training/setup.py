"""What a run is made of, and how it is put together: everything that a user can get wrong happens here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, ProjectConfiguration, set_seed
from diffusers import ModelMixin
from safetensors.torch import save

from common.checkpoints import Checkpoint, load_checkpoint
from common.interruption import Interruption
from common.processes import processes
from common.room import Room
from critic.credit import create_critic
from critic.critic import Critic
from environment.build import build_environment
from environment.environment import Environment
from evaluation.choice import examination_of_spec
from evaluation.examination import Examination
from hub.access import check_push
from pipelines.memory import DTYPES, memory_options
from policy.lora import TEXT_LAYERS, add_lora
from policy.policy import Policy
from training.checks import check, check_same_run
from training.config import RunConfig
from training.inputs import describe_inputs
from training.optimizer import create_optimizer
from training.tracking import Tracking

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What a run is made of.

    Attributes:
        config: its settings, with the batch size that goes by the base's latents.
        examination: who evaluates base and adapter at the end, and on what; None for no evaluation.
        checkpoint: what it goes on from, if it resumes.
    """

    config: RunConfig
    accelerator: Accelerator
    env: Environment
    examination: Examination | None
    optimizer: Any
    critic: Critic
    checkpoint: Checkpoint | None

    @cached_property
    def inputs(self) -> dict[str, str | None]:
        """Digests of what it was given; the weights of a large base take a while to read."""
        return describe_inputs(self.config)

    @property
    def policy(self) -> Policy:
        return self.env.policy

    @property
    def denoiser(self) -> ModelMixin:
        return self.env.policy.denoiser

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @cached_property
    def tracking(self) -> Tracking:
        """The run's trackers; started by `Tracking.start`."""
        return Tracking(self.accelerator)

    @cached_property
    def room(self) -> Room:
        """Kept on the disk, while it is entered, for the adapter in both formats and the critic."""
        critic = () if self.critic.kind == "none" else self.critic.network.parameters()
        size = 2 * len(save(self.policy.state())) + sum(p.nbytes for p in critic)
        return Room(self.config.output.output_dir, size if self.is_main else 0)

    @cached_property
    def interruption(self) -> Interruption:
        """Ctrl-C, SIGTERM and SIGHUP, noted while it is entered."""
        return Interruption()


def prepare(config: RunConfig) -> Run:
    """Check the settings, load everything, and attach the adapter.

    Raises:
        ValueError: something named is missing or does not fit; nothing has been written then.
    """
    check(config)
    memory = memory_options(config.memory, processes().device)
    output = config.output
    checkpoint = None
    if output.resume_from_checkpoint:
        checkpoint = load_checkpoint(output.output_dir, output.resume_from_checkpoint)
    accelerator = Accelerator(
        mixed_precision=config.memory.precision,
        log_with=None if output.report_to == "none" else output.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output.output_dir), logging_dir=str(output.output_dir / output.logging_dir)
        ),
    )
    if config.hub.push_to_hub and accelerator.is_main_process:
        check_push(config.repository, config.hub.hub_token)
    set_up_logging(accelerator)
    set_seed(output.seed)
    if config.memory.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    with config.base.downloads():
        env = build_environment(
            config.base,
            config.concept,
            config.reward,
            config.environment,
            device=accelerator.device,
            dtype=DTYPES[accelerator.mixed_precision],
            memory=memory,
        )
        config = config.with_batch_size(env.batch_size)
        examination = None
        if config.validation.evaluation_seeds != ():
            with env.on_device():
                examination = examination_of_spec(
                    env.spec,
                    env.teacher,
                    config.validation.judge_name_or_path,
                    bundled=config.base.is_bundled,
                )
        critic = create_critic(config.critic, env, used=config.credit.estimator.uses_critic, seed=output.seed)
    for module in env.backbone.modules:
        module.requires_grad_(False)
    set_seed(output.seed)  # again: the adapter begins the same whatever critic was drawn before it
    denoiser, adapter = env.policy.denoiser, config.adapter
    parameters = add_lora(denoiser, adapter.rank, adapter.alpha, adapter.targets(env.backbone))
    if adapter.train_text_encoder:
        for encoder in env.backbone.adaptable_encoders.values():
            add_lora(encoder, adapter.rank, adapter.alpha, TEXT_LAYERS)
    if checkpoint:
        check_same_run(config, checkpoint, describe_inputs(config))
        env.policy.load_state(checkpoint.groups["lora"])  # one that does not fit is refused here
    if config.memory.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if config.memory.channels_last:
        denoiser.to(memory_format=torch.channels_last)
    optimizer = accelerator.prepare(create_optimizer(config.optimizer, parameters))
    compile_denoiser(config, accelerator, denoiser)
    accelerator.wait_for_everyone()  # before anything is written where another process looks whether it is empty
    return Run(config, accelerator, env, examination, optimizer, critic, checkpoint)


def set_up_logging(accelerator: Accelerator) -> None:
    """Say what this project logs, once for all processes; libraries say warnings, once on every machine."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
    )
    for name in ("training", "train_unlearn_lora", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    if not accelerator.is_local_main_process:
        transformers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.set_verbosity_error()


def compile_denoiser(config: RunConfig, accelerator: Accelerator, denoiser: ModelMixin) -> None:
    """Have the network compiled once it is asked for something, in place, if a flag of this script or of
    `accelerate launch` says so."""
    launched = accelerator.state.dynamo_plugin
    asked = launched.backend != DynamoBackend.NO  # the launcher sets other settings in any case
    if config.memory.torch_compile or asked:
        # With and without gradient, with and without adapter, for each number of states that go through
        # together.
        torch._dynamo.config.recompile_limit = 64
        denoiser.compile(**(launched.to_kwargs() if asked else {}))
