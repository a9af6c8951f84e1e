"""Distil the noise-conditioned reward predictor: `python -m reward.train`, or `accelerate launch -m
reward.train` on several devices.

The base model draws images for a list of prompts (or images are given), the open_clip teacher embeds them,
and the predictor learns to say from a noised latent and its timestep what the teacher would say of the image.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import canvas
from common.checkpoints import list_checkpoints, load_checkpoint
from common.command_line import DiscreetParser, number, positive_int, whole_number
from common.errors import friendly_errors, friendly_interrupts
from common.memory import advised
from common.names import public_name
from common.network import CONFIG_NAME, WEIGHTS_NAME, require_hub_access
from pipelines.base import BY_LATENTS, add_base_arguments, base_options, load_pipeline
from reward.classifier import ClassifierTeacher
from reward.concept import read_prompts
from reward.concept.automatic import kind_of
from reward.concept.vocabulary import asking_for, general_prompts
from reward.distil import (
    CACHE_NAME,
    DEFAULT_IMAGES,
    NOISE_LEVELS,
    Checkpointing,
    add_distillation_arguments,
    check_width,
    distil_config,
    fit_predictor,
)
from reward.latents import (
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
        help="Tell the predictor the timestep; one that is not told is the timestep-blind twin of `python -m evaluation.predictor`.",
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
