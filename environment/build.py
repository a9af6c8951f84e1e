"""The settings of rollouts and rewards, and the environment that all settings together make."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import canvas
from common.flags import flag
from environment.environment import Environment
from pipelines.backbone import Backbone
from pipelines.base import BY_LATENTS, BaseConfig, load_base
from pipelines.memory import MemoryOptions
from pipelines.quantization import quantize
from policy.kernel import ReverseKernel
from policy.policy import Policy
from reward.arguments import NO_TEACHER, ConceptConfig, RewardConfig, load_teachers, read_inputs, resolve_spec
from reward.concept import in_its_place
from reward.concept.vocabulary import general_prompts
from reward.distil import train_predictor
from reward.margin import FIDELITY_WEIGHT, ConceptReward
from reward.origin import check_fit
from reward.predictor import RewardPredictor


@dataclass(frozen=True)
class EnvironmentConfig:
    """Rollouts and their reward."""

    train_reward: bool = flag(
        False, help="Train a reward predictor for this base first, on the given prompts."
    )
    fidelity_weight: float = flag(
        FIDELITY_WEIGHT,
        at_least=0,
        help="Weight of the prompt without the concept, for one of the concept's absence.",
    )
    num_inference_steps: int = flag(16, at_least=1, help="Denoising steps of a rollout.")
    guidance_scale: float = flag(
        7.5,
        at_least=0,
        help="Classifier-free guidance of rollouts and updates alike; use the one the adapter will be used with.",
    )
    eta: float = flag(
        1.0,
        above=0,
        help="Noise of the stochastic DDIM sampler; 1 is ancestral sampling, 0 is refused.",
    )
    train_batch_size: int | None = flag(
        None,
        at_least=1,
        help="Trajectories that go through the UNet together, in rollouts and updates; fewer need less memory "
        "and give the same updates. " + BY_LATENTS,
        may_change=True,
    )


def build_environment(
    base: BaseConfig,
    concept: ConceptConfig,
    reward: RewardConfig,
    config: EnvironmentConfig,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory: MemoryOptions | None = None,
) -> Environment:
    """Load what settings name and check that it fits together, cheapest checks first.

    Args:
        dtype: precision of the base.
        memory: how memory is saved; by default not at all.

    Raises:
        ValueError: something named does not exist or does not fit; the message says what to do.
    """
    inputs = read_inputs(concept, reward)
    check_reward(base, reward, config)
    memory = memory or MemoryOptions()
    pipe = load_base(base, dtype)
    if memory.quantization is not None:
        quantize(Backbone.of(pipe).denoiser, memory.quantization, device)
    backbone = Backbone.of(pipe.to(device))
    kernel = ReverseKernel.of(backbone, config.num_inference_steps, config.eta)
    for text in inputs.texts():
        backbone.check_window(text)
    teacher, text_teacher = load_teachers(reward, inputs, base.is_bundled, device=device)

    if config.train_reward:
        first = inputs.forget or ([] if inputs.retain else general_prompts())
        spec, exemplars = resolve_spec(concept, inputs, text_teacher, first)
        predictor = train_predictor(
            pipe,
            teacher,
            [*spec.forget_prompts, *spec.retain_prompts],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            clip_model=None if reward.uses_classifier else reward.clip_model,
            base_name=base.name,
            revision=base.revision,
        )
    else:
        predictor = RewardPredictor.from_pretrained(reward.reward_model_name_or_path or canvas.REWARD)
    check_fit(predictor, backbone.latent_shape, backbone.pipeline_class, pipe.scheduler, teacher)
    predictor.to(device).requires_grad_(False)

    if not config.train_reward:
        spec, exemplars = resolve_spec(concept, inputs, text_teacher, predictor.config["prompts"])
    spec = replace(spec, anchors=[row[: concept.num_anchors] for row in spec.anchors])
    prompts = [*spec.forget_prompts, *spec.retain_prompts]
    prompts += sorted({text for row in spec.anchors for text in row} - set(prompts))
    texts = teacher.encode_text(prompts)
    vocabulary = in_its_place(spec, concept.num_vocabulary_prompts)
    vocabulary_ids = torch.arange(len(prompts), len(prompts) + len(vocabulary), device=device)
    prompts += vocabulary
    row_of = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    forget = torch.arange(len(prompts), device=device) < len(spec.forget_prompts)
    policy = Policy(
        backbone,
        kernel,
        backbone.prompt_table(prompts, forget),
        guidance_scale=config.guidance_scale,
        batch_size=config.train_batch_size or backbone.usual_batch_size,
    )
    env = Environment(
        backbone=backbone,
        policy=policy,
        spec=spec,
        teacher=teacher,
        predictor=predictor,
        reward=ConceptReward.from_spec(spec, teacher, config.fidelity_weight, exemplars),
        anchor_rows=torch.tensor(
            [[row_of[text] for text in row] for row in spec.padded_anchors()], device=device
        ),
        vocabulary_ids=vocabulary_ids,
        prompt_text=texts,
        offload_trajectories=memory.offload_trajectories,
    )
    if memory.offload_models:
        env.offload_models()
    return env


def check_reward(base: BaseConfig, reward: RewardConfig, config: EnvironmentConfig) -> None:
    """Refuse a base that is not the bundled one without a teacher and a reward predictor.

    Raises:
        ValueError: which of them is missing, and how to get it.
    """
    if base.is_bundled:
        return
    if not reward.clip_model and not reward.uses_classifier:
        raise ValueError(NO_TEACHER)
    if not reward.reward_model_name_or_path and not config.train_reward:
        teacher_flag = (
            f"--classifier_name_or_path {reward.classifier_name_or_path}"
            if reward.uses_classifier
            else f"--clip_model {reward.clip_model}"
        )
        raise ValueError(
            "This base needs a reward predictor: train one with `python -m reward.train "
            f"--pretrained_model_name_or_path {base.name} {teacher_flag} --prompts FILE --output_dir DIR` and give "
            "it with --reward_model_name_or_path DIR, or add --train_reward."
        )
