"""All settings of a run: `train_unlearn_lora.py --help`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.flags import IMAGE_SEED, SEED, by_name, flag, parse, public_values
from common.names import public_name
from critic.critic import CriticConfig
from critic.estimators import CreditConfig
from environment.build import EnvironmentConfig
from hub.push import HubConfig
from pipelines.base import BaseConfig
from pipelines.memory import MemoryConfig
from policy.lora import AdapterConfig
from policy.update import UpdateConfig
from reward.arguments import ConceptConfig, RewardConfig
from training.control import RollbackConfig, ScheduleConfig
from training.optimizer import OptimizerConfig
from training.presets import PRESETS

DESCRIPTION = """Train a LoRA adapter that makes a Stable Diffusion pipeline unable to draw a concept.

Critic-guided reinforcement unlearning (arXiv 2601.03213): denoising is a sequential decision process; a
noise-conditioned reward predictor and, if asked, a timestep-aware critic value the noisy latent that a step led
to; clipped policy-gradient updates move the adapter along the gradients of that value."""

ITERATIONS = "a run is counted in iterations, --max_train_iterations, and ends when the concept is gone"
NO_IMAGES = "no training images are needed; --concept names what to erase, --concept_images shows it"
NO_LOSS = "there is no denoising loss"
ELSEWHERE = {
    "max_train_steps": ITERATIONS,
    "num_train_epochs": ITERATIONS,
    "validation_epochs": "previews come every --validation_steps",
    "noise_offset": NO_LOSS,
    "snr_gamma": NO_LOSS,
    "input_perturbation": NO_LOSS,
    "train_data_dir": NO_IMAGES,
    "dataset_name": NO_IMAGES,
    "instance_data_dir": NO_IMAGES,
    "instance_prompt": NO_IMAGES,
    "center_crop": NO_IMAGES,
    "random_flip": NO_IMAGES,
    "dataloader_num_workers": NO_IMAGES,
}
"""What to say of the flags of diffusers' training scripts that this one does without."""


@dataclass(frozen=True)
class OutputConfig:
    """Output and resuming."""

    output_dir: Path = flag(
        Path("unlearned-lora"),
        help="Where adapter, results, pictures and checkpoints are written.",
        published=None,
    )
    overwrite_output_dir: bool = flag(
        False, help="Write into an output directory that is not empty.", published=None
    )
    output_kohya_format: bool = flag(
        True,
        help="Write the adapter for ComfyUI, AUTOMATIC1111, Forge and sd-scripts too, called after the concept.",
        negatable=True,
        may_change=True,
    )
    dry_run: bool = flag(
        False,
        help="Say what would be done and about what it costs, from a short probe, and write nothing.",
        published=None,
    )
    preset: str | None = flag(
        None,
        choices=tuple(PRESETS),
        help="Settings that go together, in place of the defaults; other flags win. paper: the algorithm of the "
        "paper, which needs images by the thousand.",
    )
    seed: int = flag(0, within=SEED, help="Seed of the whole run.")
    base_model_id: str | None = flag(
        None,
        help="Hub id of a base that is loaded from a local copy: what results, card and header call it. "
        "Default: the copy's name.",
        may_change=True,
    )
    checkpointing_steps: int = flag(
        10, at_least=0, help="Write a checkpoint every N iterations; 0 for none.", may_change=True
    )
    checkpoints_total_limit: int = flag(2, at_least=0, help="Number of checkpoints to keep.", may_change=True)
    resume_from_checkpoint: str | None = flag(
        None, help='A checkpoint of the output directory, or "latest".', published=None
    )
    report_to: str = flag(
        "tensorboard",
        help='Tracker: "tensorboard", "wandb", another that accelerate knows, "all" that are installed, or "none".',
        may_change=True,
    )
    logging_dir: str = flag(
        "logs", help="Directory of the tracker within the output directory.", published=None
    )


@dataclass(frozen=True)
class ValidationConfig:
    """Previews and evaluation."""

    validation_prompt: tuple[str, ...] | None = flag(
        None,
        help="Prompts of the previews. Default: forget and retain prompts in turn.",
        may_change=True,
    )
    num_validation_images: int = flag(
        8,
        at_least=1,
        help="Images of a preview when no prompt is given, half of them of the concept.",
        may_change=True,
    )
    validation_steps: int = flag(
        10,
        at_least=0,
        help="Preview every N iterations; 0 for none during training.",
        may_change=True,
    )
    validation_guidance_scale: float | None = flag(
        None,
        at_least=0,
        help="Guidance of previews and evaluation. Default: the pipeline's own.",
        may_change=True,
    )
    evaluation_seeds: tuple[int, ...] | None = flag(
        None,
        within=IMAGE_SEED,
        nargs="*",
        help="Seeds of the evaluation, one image for each prompt and seed; the flag without a seed skips it. "
        "Default: 0 1 2, and for prompts that ask for the concept as many more as make 24 images.",
        may_change=True,
    )
    judge_name_or_path: str | None = flag(
        None,
        help="Judge of the evaluation for a base that is not the bundled one. Default: the teacher, marked as "
        "such.",
        may_change=True,
        published=by_name,
    )


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run, each group beside what it sets."""

    concept: ConceptConfig
    base: BaseConfig
    reward: RewardConfig
    environment: EnvironmentConfig
    output: OutputConfig
    schedule: ScheduleConfig
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    memory: MemoryConfig
    credit: CreditConfig
    update: UpdateConfig
    rollback: RollbackConfig
    critic: CriticConfig
    validation: ValidationConfig
    hub: HubConfig

    @property
    def base_name(self) -> str:
        """What results, card and header call the base."""
        return self.output.base_model_id or public_name(self.base.name)

    @property
    def repository(self) -> str:
        """The Hub repository to upload to."""
        return self.hub.hub_model_id or self.output.output_dir.resolve().name

    def with_batch_size(self, batch_size: int) -> RunConfig:
        """With the batch size that goes by the base's latents where none was given."""
        return replace(self, environment=replace(self.environment, train_batch_size=batch_size))

    def public_settings(self) -> dict[str, Any]:
        """The settings as results and card show them: nothing that is local to this machine."""
        resolved = {"lora_alpha": self.adapter.alpha, "mixed_precision": self.memory.precision}
        return public_values(self) | resolved


def parse_config(arguments: Sequence[str] | None = None) -> RunConfig:
    """The settings of a command line."""
    return parse(RunConfig, arguments, DESCRIPTION, elsewhere=ELSEWHERE, presets=PRESETS)
