"""Distil the noise-conditioned reward predictor: `python -m reward.train`, or `accelerate launch -m
reward.train` on several devices.

The base model draws images for a list of prompts (or images are given), the open_clip teacher embeds them,
and the predictor learns to say from a noised latent and its timestep what the teacher would say of the image.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

import canvas
from environment.base import BY_LATENTS, add_base_arguments, base_options, load_pipeline
from environment.command_line import DiscreetParser, number, positive_int, whole_number
from environment.errors import friendly_errors, friendly_interrupts
from evaluation.protocol import public_name
from networks.checkpoint import CONFIG_NAME, WEIGHTS_NAME, require_hub_access
from networks.film import MAX_WIDTH, size_of
from reward.classifier import ClassifierTeacher
from reward.distil import NOISE_LEVELS, Checkpointing, DistilConfig, cosine_by_noise, distil
from reward.latents import (
    BaseRollouts,
    BaseSamples,
    DatasetImages,
    EncodedImages,
    ImageFolder,
    Latents,
    Source,
    collect,
)
from reward.origin import describe_origin
from reward.predictor import RewardPredictor
from reward.spec import read_prompts
from reward.spec.automatic import kind_of
from reward.spec.vocabulary import asking_for, general_prompts
from reward.teacher import Teacher
from training.checkpoints import list_checkpoints, load_checkpoint
from training.memory import advised

CACHE_NAME = "latents"
DEFAULT_IMAGES = 4096


def train_predictor(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
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
        pipe, prompts, num_inference_steps, guidance_scale, batch_size, seed
    )
    data = collect(source, teacher, num_images, cache_dir)
    config = DistilConfig(steps=steps, batch_size=train_batch_size, learning_rate=learning_rate, seed=seed)
    base = {"name": base_name and public_name(base_name), "revision": revision}
    return fit_predictor(
        pipe, teacher, source, data, config, prompts=prompts, width=width, clip_model=clip_model, base=base
    )


def fit_predictor(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
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
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    distil(predictor.to(accelerator.device), train, scheduler, config, accelerator, checkpoints)
    cosines = cosine_by_noise(
        predictor.cpu(), held_out, scheduler, torch.Generator().manual_seed(config.seed)
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


def add_distillation_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the distillation that `python -m reward.evaluate` shares, for the twins it trains."""
    parser.add_argument("--max_train_steps", type=positive_int, default=4000, help="Optimizer steps.")
    parser.add_argument(
        "--train_batch_size",
        type=positive_int,
        default=128,
        help="Noised latents in an optimizer step, over all processes.",
    )
    parser.add_argument(
        "--learning_rate", type=number, default=2e-3, help="Peak of the one-cycle learning rate."
    )
    parser.add_argument(
        "--ema_decay",
        type=number,
        default=0.999,
        help="Decay of the averaged weights, which are what is saved; 0 saves the last ones.",
    )
    parser.add_argument(
        "--max_grad_norm", type=number, default=1.0, help="Norm that the gradient is clipped to."
    )
    parser.add_argument(
        "--width",
        type=positive_int,
        default=48,
        help=f"Channels of the predictor's first stage, a multiple of 8, at most {MAX_WIDTH}.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of images, noise and weights.")


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = DiscreetParser(
        prog="python -m reward.train",
        description="Train the noise-conditioned reward predictor for a base model.",
    )
    add_base_arguments(parser)
    parser.set_defaults(pretrained_model_name_or_path=str(canvas.PIPELINE))
    parser.add_argument(
        "--clip_model",
        default=f"local-dir:{canvas.CLIP}",
        help="Teacher: open_clip name, hf-hub:ID or local-dir:DIR. Default: bundled.",
    )
    parser.add_argument(
        "--clip_pretrained",
        help="open_clip's pretrained tag or a safetensors file, for an architecture name.",
    )
    parser.add_argument(
        "--classifier_name_or_path",
        help="Distil the logits of this transformers image classifier (directory or Hub id) instead of a CLIP.",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help="Text file of prompts the base draws, one a line; # starts a comment. They are drawn for, unless images are given; the checkpoint "
        "records them. Default: the bundled base's own, for another base general ones (styles, artists, characters, objects, scenes).",
    )
    parser.add_argument(
        "--concept",
        nargs="+",
        metavar="TEXT",
        help="Draw for these concepts too, so that runs that erase them find their prompts.",
    )
    parser.add_argument(
        "--train_data_dir",
        type=Path,
        help="Learn from the images of this folder and its subfolders instead of the base's samples.",
    )
    parser.add_argument(
        "--dataset_name",
        help="Learn from this dataset of the package `datasets` (a Hub id or a local folder) instead.",
    )
    parser.add_argument("--dataset_config_name", help="Configuration of that dataset. Default: its own.")
    parser.add_argument("--dataset_split", default="train", help="Split of that dataset.")
    parser.add_argument(
        "--image_column", default="image", help="Column of that dataset that holds the images."
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Where config.json and model.safetensors are written."
    )
    parser.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="Replace a predictor or checkpoints that --output_dir already holds.",
    )
    parser.add_argument(
        "--cache_dir",
        type=Path,
        help=f"Where latents and embeddings are kept for later runs; all processes must see it. Default: {CACHE_NAME} in --output_dir.",
    )
    parser.add_argument(
        "--num_images",
        type=int,
        help=f"How many images to learn from. Default: {DEFAULT_IMAGES} drawn by the base, or all that are given.",
    )
    parser.add_argument(
        "--num_inference_steps", type=positive_int, default=16, help="Denoising steps of the base's samples."
    )
    parser.add_argument(
        "--guidance_scale",
        type=number,
        default=7.5,
        help="Guidance of the base's samples; use that of the later rollouts.",
    )
    parser.add_argument(
        "--learn_from_rollouts",
        action=argparse.BooleanOptionalAction,
        help="Learn from the noisy states that stochastic sampling passes through, too, which is what a policy is rewarded on. They are kept with "
        "the latents: --num_inference_steps times as much memory and disk. Default: yes, unless images are given.",
    )
    parser.add_argument(
        "--sample_batch_size", type=positive_int, help=f"Images drawn or encoded at a time. {BY_LATENTS}"
    )
    add_distillation_arguments(parser)
    parser.add_argument(
        "--timestep_conditioning",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Tell the predictor the timestep; one that is not told is the timestep-blind twin of `python -m reward.evaluate`.",
    )
    parser.add_argument(
        "--noise_levels",
        choices=NOISE_LEVELS,
        default="all",
        help="Noise of the latents it learns from; clean is the clean-only twin.",
    )
    parser.add_argument(
        "--use_8bit_adam",
        action="store_true",
        help="Use bitsandbytes' 8-bit AdamW. The predictor is small, so this saves little.",
    )
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="Precision of base and predictor. Default: accelerate's.",
    )
    parser.add_argument(
        "--checkpointing_steps",
        type=whole_number,
        default=1000,
        help="Save the state of the training every so many steps; 0 saves none.",
    )
    parser.add_argument(
        "--checkpoints_total_limit",
        type=whole_number,
        default=1,
        help="Keep so many of these checkpoints, dropping the oldest.",
    )
    parser.add_argument(
        "--resume_from_checkpoint", help='Go on from a checkpoint of --output_dir: its name, or "latest".'
    )
    parser.add_argument(
        "--push_to_hub", action="store_true", help="Upload the predictor to the Hub when it is trained."
    )
    parser.add_argument(
        "--hub_model_id", help="Repository to upload to. Default: the last part of --output_dir."
    )
    parser.add_argument("--hub_token", help="Token to upload with. Default: the one of `hf auth login`.")
    return parser.parse_args(input_args)


def check_arguments(args: argparse.Namespace) -> None:
    """Everything that can be told to be wrong before anything is loaded.

    Raises:
        ValueError: what, and what to give instead.
    """
    given = [flag for flag in ("train_data_dir", "dataset_name") if getattr(args, flag)]
    if len(given) > 1:
        raise ValueError("Give --train_data_dir or --dataset_name, not both.")
    if given and args.learn_from_rollouts:
        raise ValueError(
            "--learn_from_rollouts is for the base's own samples; leave it out where images are given."
        )
    if args.num_images is not None and args.num_images < 2:
        raise ValueError("--num_images must be at least 2, one to hold out and one to learn from.")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema_decay must be at least 0 and less than 1, got {args.ema_decay}.")
    check_width(args.width)
    if args.learning_rate <= 0 or args.max_grad_norm <= 0:
        raise ValueError("--learning_rate and --max_grad_norm must be positive.")
    directory = args.output_dir
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output_dir {directory} is a file.")
    taken = any((directory / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME)) or bool(
        list_checkpoints(directory)
    )
    if taken and not (args.overwrite_output_dir or args.resume_from_checkpoint):
        raise ValueError(
            f"{directory} already holds a predictor or checkpoints; choose another --output_dir, add --overwrite_output_dir, "
            "or --resume_from_checkpoint latest."
        )
    if args.resume_from_checkpoint:
        load_checkpoint(directory, args.resume_from_checkpoint)
    if args.push_to_hub:
        require_hub_access(args.hub_token)


def create_source(
    args: argparse.Namespace, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, prompts: list[str]
) -> Source:
    """What the arguments say to learn from.

    Raises:
        ValueError: there is no such data.
    """
    if args.train_data_dir:
        folder = ImageFolder(args.train_data_dir)
        return EncodedImages(
            pipe, folder, folder.label(), args.train_data_dir.resolve().name, args.sample_batch_size
        )
    if args.dataset_name:
        images = DatasetImages(
            args.dataset_name, args.dataset_config_name, args.dataset_split, args.image_column
        )
        return EncodedImages(
            pipe, images, images.label(), public_name(args.dataset_name), args.sample_batch_size
        )
    kind = BaseSamples if args.learn_from_rollouts is False else BaseRollouts
    return kind(
        pipe, prompts, args.num_inference_steps, args.guidance_scale, args.sample_batch_size, args.seed
    )


def known_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the file, the bundled base's own, or general ones.

    Raises:
        ValueError: the file cannot be read or holds none.
    """
    if args.prompts:
        return read_prompts(args.prompts)
    if Path(args.pretrained_model_name_or_path).resolve() == canvas.PIPELINE.resolve():
        return list(RewardPredictor.from_pretrained(canvas.REWARD).config["prompts"])
    return general_prompts()


def check_width(width: int) -> None:
    """
    Raises:
        ValueError: the network cannot have it.
    """
    if not 8 <= width <= MAX_WIDTH or width % 8:
        raise ValueError(f"--width must be a multiple of 8 from 8 to {MAX_WIDTH}, got {width}.")


def distil_config(args: argparse.Namespace, **changes: Any) -> DistilConfig:
    """The settings that the flags of `add_distillation_arguments` give, with `changes`."""
    settings = {
        "steps": args.max_train_steps,
        "batch_size": args.train_batch_size,
        "learning_rate": args.learning_rate,
        "ema_decay": args.ema_decay,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
    }
    return DistilConfig(**(settings | changes))


@advised("sample_batch_size", "train_batch_size")
def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    prompts = known_prompts(args)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    pipe = load_pipeline(
        args.pretrained_model_name_or_path, args.revision, dtype=dtype, **base_options(args)
    ).to(accelerator.device)
    if args.classifier_name_or_path:
        teacher: Teacher = ClassifierTeacher.from_pretrained(
            args.classifier_name_or_path, device=accelerator.device
        )
    else:
        teacher = Teacher.from_pretrained(args.clip_model, args.clip_pretrained, accelerator.device)
    for concept in args.concept or []:
        prompts += [p for p in asking_for(kind_of(concept, teacher.encode_text), concept) if p not in prompts]
    source = create_source(args, pipe, prompts)
    args.sample_batch_size = source.shard_size  # for advice where memory runs out
    count = args.num_images or (DEFAULT_IMAGES if source.available is None else None)
    if args.overwrite_output_dir and not args.resume_from_checkpoint and accelerator.is_main_process:
        for old in list_checkpoints(args.output_dir):
            shutil.rmtree(old)
    with friendly_interrupts("The latents made so far are kept; the same command goes on with them."):
        data = collect(source, teacher, count, args.cache_dir or args.output_dir / CACHE_NAME)
    if len(data) < 2:
        raise ValueError("One image is not enough: one is held out and at least one is learnt from.")
    with friendly_interrupts("If a checkpoint was saved, go on with --resume_from_checkpoint latest."):
        predictor = fit_predictor(
            pipe,
            teacher,
            source,
            data,
            distil_config(args, noise_levels=args.noise_levels, use_8bit_adam=args.use_8bit_adam),
            prompts=prompts,
            base={"name": public_name(args.pretrained_model_name_or_path), "revision": args.revision},
            width=args.width,
            timestep_conditioning=args.timestep_conditioning,
            clip_model=None if args.classifier_name_or_path else args.clip_model,
            accelerator=accelerator,
            checkpoints=Checkpointing(
                args.output_dir,
                args.checkpointing_steps or None,
                args.checkpoints_total_limit,
                args.resume_from_checkpoint,
            ),
        )
    if accelerator.is_main_process:
        predictor.save_pretrained(args.output_dir, dtype=torch.float16)
        print(f"Wrote {args.output_dir}; use it with --reward_model_name_or_path {args.output_dir}")
        if args.push_to_hub:
            url = predictor.push_to_hub(
                args.hub_model_id or args.output_dir.resolve().name, token=args.hub_token, dtype=torch.float16
            )
            print(f"Uploaded to {url}")
    accelerator.end_training()


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
