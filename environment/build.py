"""The flags that name the base and its reward, and the environment they make."""

from __future__ import annotations

import argparse

import torch

import canvas
from common.command_line import number, positive_int
from environment.environment import Environment
from pipelines.backbone import Backbone
from pipelines.base import BY_LATENTS, add_base_arguments, base_options, load_pipeline
from pipelines.memory import MemoryOptions
from pipelines.quantization import quantize
from policy.kernel import ReverseKernel
from reward.arguments import add_concept_arguments, load_teachers, read_given, resolve_spec, uses_bundled_base
from reward.concept.vocabulary import general_prompts
from reward.distil import train_predictor
from reward.margin import FIDELITY_WEIGHT, ConceptReward
from reward.origin import check_fit
from reward.predictor import RewardPredictor


def add_environment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `build_environment` reads."""
    add_concept_arguments(parser)
    add_base_arguments(parser)
    parser.add_argument(
        "--train_reward",
        action="store_true",
        help="Train a reward predictor for this base first, on the given prompts.",
    )
    parser.add_argument(
        "--fidelity_weight",
        type=number,
        default=FIDELITY_WEIGHT,
        help="Weight of the prompt without the concept, for one of the concept's absence.",
    )
    parser.add_argument(
        "--num_inference_steps", type=positive_int, default=16, help="Denoising steps of a rollout."
    )
    parser.add_argument(
        "--guidance_scale",
        type=number,
        default=7.5,
        help="Classifier-free guidance of rollouts and updates alike; use the one the adapter will be used with.",
    )
    parser.add_argument(
        "--eta",
        type=number,
        default=1.0,
        help="Noise of the stochastic DDIM sampler; 1 is ancestral sampling, 0 is refused.",
    )
    parser.add_argument(
        "--train_batch_size",
        type=positive_int,
        help="Trajectories that go through the UNet together, in rollouts and updates; fewer need less memory and give the same updates. "
        + BY_LATENTS,
    )


def build_environment(
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory: MemoryOptions | None = None,
) -> Environment:
    """Load what the arguments name and check that it fits together, cheapest checks first.

    Args:
        dtype: precision of the base.
        memory: how memory is saved; by default not at all.

    Raises:
        ValueError: something named does not exist or does not fit; the message says what to do.
    """
    given = read_given(args)
    if not uses_bundled_base(args) and not args.clip_model and args.reward_type == "clip":
        raise ValueError(
            "This base needs a teacher: name an open_clip model with --clip_model (and --clip_pretrained)."
        )
    if not uses_bundled_base(args) and not args.reward_model_name_or_path and not args.train_reward:
        by_clip = args.reward_type == "clip"
        teacher_flag = (
            f"--clip_model {args.clip_model}"
            if by_clip
            else f"--classifier_name_or_path {args.classifier_name_or_path}"
        )
        raise ValueError(
            "This base needs a reward predictor: train one with `python -m reward.train --pretrained_model_name_or_path "
            f"{args.pretrained_model_name_or_path} {teacher_flag} --prompts FILE --output_dir DIR` and give it with "
            "--reward_model_name_or_path DIR, or add --train_reward."
        )
    memory = memory or MemoryOptions()
    pipe = load_pipeline(
        args.pretrained_model_name_or_path or canvas.PIPELINE,
        args.revision,
        dtype=dtype,
        **base_options(args),
    )
    if memory.quantization is not None:
        quantize(pipe.unet, memory.quantization, device)
    backbone = Backbone.of(pipe.to(device))
    kernel = ReverseKernel.from_scheduler(pipe.scheduler, args.num_inference_steps, args.eta, device=device)
    for text in given.texts():
        backbone.check_window(text)
    teacher, text_teacher = load_teachers(args, given, device)

    if args.train_reward:
        spec, exemplars = resolve_spec(
            args, given, text_teacher, given.forget or ([] if given.retain else general_prompts())
        )
        predictor = train_predictor(
            pipe,
            teacher,
            [*spec.forget_prompts, *spec.retain_prompts],
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            clip_model=args.clip_model if args.reward_type == "clip" else None,
            base_name=args.pretrained_model_name_or_path or canvas.PIPELINE,
            revision=args.revision,
        )
    else:
        predictor = RewardPredictor.from_pretrained(args.reward_model_name_or_path or canvas.REWARD)
    check_fit(predictor, backbone.latent_shape, backbone.pipeline_class, pipe.scheduler, teacher)
    predictor.to(device).requires_grad_(False)

    if not args.train_reward:
        spec, exemplars = resolve_spec(args, given, text_teacher, predictor.config["prompts"])
    prompts = [*spec.forget_prompts, *spec.retain_prompts]
    prompts += sorted({text for row in spec.anchors for text in row} - set(prompts))
    row_of = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    forget = torch.arange(len(prompts), device=device) < len(spec.forget_prompts)
    env = Environment(
        backbone=backbone,
        kernel=kernel,
        spec=spec,
        table=backbone.prompt_table(prompts, forget),
        teacher=teacher,
        predictor=predictor,
        reward=ConceptReward.from_spec(spec, teacher, args.fidelity_weight, exemplars),
        anchor_rows=torch.tensor(
            [[row_of[text] for text in row] for row in spec.padded_anchors()], device=device
        ),
        prompt_text=teacher.encode_text([*spec.forget_prompts, *spec.retain_prompts]),
        guidance_scale=args.guidance_scale,
        batch_size=args.train_batch_size or backbone.usual_batch_size,
        offload_trajectories=memory.offload_trajectories,
    )
    if memory.offload_models:
        env.offload_models()
    return env
