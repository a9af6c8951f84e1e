"""Distil the noise-conditioned reward predictor: `python -m reward.train`, or
`accelerate launch -m reward.train` on several devices.

The base model draws images for a list of prompts (or images are given), the open_clip teacher embeds them,
and the predictor learns to say from a noised latent and its timestep what the teacher would say of the image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline

import canvas
from common.checkpoints import latest_checkpoint, list_checkpoints, load_checkpoint
from common.errors import friendly_errors, friendly_interrupts
from common.files import discard
from common.flags import by_name, flag, parse
from common.lock import exclusive
from common.memory import advised, advising
from common.names import public_name
from common.network import CONFIG_NAME, WEIGHTS_NAME, require_hub_access
from pipelines.base import BY_LATENTS, BaseConfig, load_base
from pipelines.memory import DTYPES
from reward.classifier import ClassifierTeacher
from reward.concept import read_prompts
from reward.concept.automatic import kind_of
from reward.concept.vocabulary import asking_for, general_prompts
from reward.distil import (
    CACHE_NAME,
    DEFAULT_IMAGES,
    NOISE_LEVELS,
    Checkpointing,
    DistilFlags,
    fit_predictor,
)
from reward.latents import (
    SOURCE_NAME,
    BaseRollouts,
    BaseSamples,
    DatasetImages,
    EncodedImages,
    ImageFolder,
    Source,
    collect,
)
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictorBase(BaseConfig):
    """Base model."""

    pretrained_model_name_or_path: str = flag(
        str(canvas.PIPELINE),
        help="Base pipeline: a diffusers directory, a Hub id, or a .safetensors checkpoint in one file. "
        "Default: the bundled canvas.",
        published=by_name,
    )


@dataclass(frozen=True)
class TeacherConfig:
    """Teacher."""

    clip_model: str = flag(
        f"local-dir:{canvas.CLIP}",
        help="Teacher: open_clip name, hf-hub:ID or local-dir:DIR. Default: bundled.",
    )
    clip_pretrained: str | None = flag(
        None, help="open_clip's pretrained tag or a safetensors file, for an architecture name."
    )
    classifier_name_or_path: str | None = flag(
        None,
        help="Distil the logits of this transformers image classifier (directory or Hub id) instead of a CLIP.",
    )


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from."""

    prompts: Path | None = flag(
        None,
        help="Text file of prompts the base draws, one a line; # starts a comment. They are drawn for, unless "
        "images are given; the checkpoint records them. Default: the bundled base's own, for another base "
        "general ones (styles, artists, characters, objects, scenes).",
    )
    concept: tuple[str, ...] | None = flag(
        None,
        metavar="TEXT",
        help="Draw for these concepts too, so that runs that erase them find their prompts.",
    )
    train_data_dir: Path | None = flag(
        None,
        help="Learn from the images of this folder and its subfolders instead of the base's samples.",
    )
    dataset_name: str | None = flag(
        None,
        help="Learn from this dataset of the package `datasets` (a Hub id or a local folder) instead.",
    )
    dataset_config_name: str | None = flag(None, help="Configuration of that dataset. Default: its own.")
    dataset_split: str = flag("train", help="Split of that dataset.")
    image_column: str = flag("image", help="Column of that dataset that holds the images.")
    num_images: int | None = flag(
        None,
        at_least=2,
        help=f"How many images to learn from. Default: {DEFAULT_IMAGES} drawn by the base, or all that are given.",
    )
    num_inference_steps: int = flag(16, at_least=1, help="Denoising steps of the base's samples.")
    guidance_scale: float = flag(
        7.5, at_least=0, help="Guidance of the base's samples; use that of the later rollouts."
    )
    learn_from_rollouts: bool | None = flag(
        None,
        negatable=True,
        help="Learn from the noisy states that stochastic sampling passes through, too, which is what a policy is "
        "rewarded on. They are kept with the latents: --num_inference_steps times as much memory and disk. "
        "Default: yes, unless images are given.",
    )
    sample_batch_size: int | None = flag(
        None, at_least=1, help=f"Images drawn or encoded at a time. {BY_LATENTS}"
    )
    latents_dir: Path | None = flag(
        None,
        help="Where latents and embeddings are kept for later runs; all processes must see it. "
        f"Default: {CACHE_NAME} in --output_dir.",
    )


@dataclass(frozen=True)
class VariantConfig:
    """Variants and speed."""

    timestep_conditioning: bool = flag(
        True,
        negatable=True,
        help="Condition the predictor on the timestep; without, it is the timestep-blind twin of "
        "`python -m evaluation.predictor`.",
    )
    noise_levels: str = flag(
        "all",
        choices=NOISE_LEVELS,
        help="Noise of the latents it learns from; clean is the clean-only twin.",
    )
    use_8bit_adam: bool = flag(
        False, help="Use bitsandbytes' 8-bit AdamW. The predictor is small, so this saves little."
    )
    mixed_precision: str | None = flag(
        None,
        choices=("no", "fp16", "bf16"),
        help="Precision of base and predictor. Default: accelerate's.",
    )


@dataclass(frozen=True)
class OutputConfig:
    """Output and resuming."""

    output_dir: Path = flag(help="Where config.json and model.safetensors are written.")
    overwrite_output_dir: bool = flag(
        False, help="Replace a predictor or checkpoints that --output_dir already holds."
    )
    checkpointing_steps: int = flag(
        1000, at_least=0, help="Save the state of the training every N steps; 0 saves none."
    )
    checkpoints_total_limit: int = flag(
        1, at_least=0, help="Number of these checkpoints to keep; the oldest are dropped."
    )
    resume_from_checkpoint: str | None = flag(
        None, help='Go on from a checkpoint of --output_dir: its name, or "latest".'
    )
    push_to_hub: bool = flag(False, help="Upload the predictor to the Hub when it is trained.")
    hub_model_id: str | None = flag(
        None, help="Repository to upload to. Default: the last part of --output_dir."
    )
    hub_token: str | None = flag(
        None, help="Token to upload with. Default: the one of `hf auth login`.", secret=True
    )


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a reward predictor's training."""

    base: PredictorBase
    teacher: TeacherConfig
    data: DataConfig
    distillation: DistilFlags
    variant: VariantConfig
    output: OutputConfig


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The settings of a command line."""
    description = "Train the noise-conditioned reward predictor for a base model."
    return parse(TrainConfig, arguments, description, prog="python -m reward.train")


def check(config: TrainConfig) -> None:
    """Everything that can be told to be wrong before anything is loaded.

    Raises:
        ValueError: what, and what to give instead.
    """
    data, output, directory = config.data, config.output, config.output.output_dir
    if data.train_data_dir and data.dataset_name:
        raise ValueError("Give --train_data_dir or --dataset_name, not both.")
    if (data.train_data_dir or data.dataset_name) and data.learn_from_rollouts:
        raise ValueError(
            "--learn_from_rollouts is for the base's own samples; leave it out where images are given."
        )
    config.distillation.check_width()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output_dir {directory} is a file.")
    files = any((directory / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME))
    taken = files or bool(list_checkpoints(directory))
    if taken and not (output.overwrite_output_dir or output.resume_from_checkpoint):
        raise ValueError(
            f"{directory} already holds a predictor or checkpoints; choose another --output_dir, add "
            "--overwrite_output_dir, or --resume_from_checkpoint latest."
        )
    if output.resume_from_checkpoint:
        load_checkpoint(directory, output.resume_from_checkpoint)
    if output.push_to_hub:
        require_hub_access(output.hub_token)


def create_source(
    data: DataConfig,
    seed: int,
    pipe: DiffusionPipeline,
    prompts: list[str],
) -> Source:
    """What the settings say to learn from.

    Raises:
        ValueError: there is no such data.
    """
    size = data.sample_batch_size
    if data.train_data_dir:
        folder = ImageFolder(data.train_data_dir)
        return EncodedImages(pipe, folder, folder.label(), data.train_data_dir.resolve().name, size)
    if data.dataset_name:
        images = DatasetImages(
            data.dataset_name, data.dataset_config_name, data.dataset_split, data.image_column
        )
        return EncodedImages(pipe, images, images.label(), public_name(data.dataset_name), size)
    kind = BaseSamples if data.learn_from_rollouts is False else BaseRollouts
    return kind(pipe, prompts, data.num_inference_steps, data.guidance_scale, shard_size=size, seed=seed)


def known_prompts(config: TrainConfig) -> list[str]:
    """The prompts of the file, the bundled base's own, or general ones.

    Raises:
        ValueError: the file cannot be read or holds none.
    """
    if config.data.prompts:
        return read_prompts(config.data.prompts)
    if config.base.is_bundled:
        return list(RewardPredictor.from_pretrained(canvas.REWARD).config["prompts"])
    return general_prompts()


def latents_directory(config: TrainConfig) -> Path:
    """Where the latents are kept. Until 0.1.0 this was what --cache_dir named."""
    old = config.base.cache_dir
    if config.data.latents_dir is None and old is not None and any(old.glob(f"*/{SOURCE_NAME}")):
        logger.warning("The latents in --cache_dir are used; name them with --latents_dir from now on.")
        return old
    return config.data.latents_dir or config.output.output_dir / CACHE_NAME


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """The classifier that is named, else the CLIP.

    Raises:
        ValueError: it cannot be loaded.
    """
    if config.classifier_name_or_path:
        return ClassifierTeacher.from_pretrained(config.classifier_name_or_path, device=device)
    return Teacher.from_pretrained(config.clip_model, config.clip_pretrained, device)


SIZES = ("sample_batch_size", "train_batch_size")


@advised(*SIZES)
def main(config: TrainConfig) -> None:
    check(config)
    accelerator = Accelerator(mixed_precision=config.variant.mixed_precision)
    set_seed(config.distillation.seed)
    prompts = known_prompts(config)
    with config.base.downloads():
        pipe = load_base(config.base, DTYPES[accelerator.mixed_precision]).to(accelerator.device)
        teacher = load_teacher(config.teacher, accelerator.device)
    for concept in config.data.concept or ():
        prompts += [p for p in asking_for(kind_of(concept, teacher.encode_text), concept) if p not in prompts]
    source = create_source(config.data, config.distillation.seed, pipe, prompts)
    with exclusive(config.output.output_dir) if accelerator.is_main_process else nullcontext():
        with advising(config, *SIZES, sample_batch_size=source.shard_size):
            predictor = make_predictor(config, accelerator, pipe, teacher, source, prompts=prompts)
        if accelerator.is_main_process:
            save(config.output, predictor)
    accelerator.end_training()


def make_predictor(
    config: TrainConfig,
    accelerator: Accelerator,
    pipe: DiffusionPipeline,
    teacher: Teacher,
    source: Source,
    *,
    prompts: list[str],
) -> RewardPredictor:
    """Draw or read the images, and distil; both go on where an earlier run was interrupted.

    Raises:
        ValueError: there are too few images.
    """
    output, variant = config.output, config.variant
    count = config.data.num_images or (DEFAULT_IMAGES if source.available is None else None)
    if output.overwrite_output_dir and not output.resume_from_checkpoint and accelerator.is_main_process:
        for old in list_checkpoints(output.output_dir):
            discard(old)
    with friendly_interrupts("The latents made so far are kept; the same command goes on with them."):
        data = collect(source, teacher, count, latents_directory(config))
    if len(data) < 2:
        raise ValueError("One image is not enough: one is held out and at least one is learnt from.")
    with friendly_interrupts(partial(latest_checkpoint, output.output_dir)):
        return fit_predictor(
            pipe,
            teacher,
            source,
            data,
            config.distillation.config(
                noise_levels=variant.noise_levels, use_8bit_adam=variant.use_8bit_adam
            ),
            prompts=prompts,
            base={"name": public_name(config.base.name), "revision": config.base.revision},
            width=config.distillation.width,
            timestep_conditioning=variant.timestep_conditioning,
            clip_model=None if config.teacher.classifier_name_or_path else config.teacher.clip_model,
            accelerator=accelerator,
            checkpoints=Checkpointing(
                output.output_dir,
                output.checkpointing_steps or None,
                output.checkpoints_total_limit,
                output.resume_from_checkpoint,
            ),
        )


def save(output: OutputConfig, predictor: RewardPredictor) -> None:
    """Write the predictor, and upload it if asked."""
    directory = output.output_dir
    predictor.save_pretrained(directory, dtype=torch.float16)
    print(f"Wrote {directory}; use it with --reward_model_name_or_path {directory}")
    if output.push_to_hub:
        name = output.hub_model_id or directory.resolve().name
        url = predictor.push_to_hub(name, token=output.hub_token, dtype=torch.float16)
        print(f"Uploaded to {url}")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
