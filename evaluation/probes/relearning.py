"""Relearning: a LoRA fine-tuned on top of the erased model with the usual loss, on images of the concept and
on images of anything else.

If a few steps on the concept bring it back, it was hidden and not removed. If steps on unrelated images do,
any user's fine-tuning may undo the erasure (Suriyakumar et al., 2024, https://arxiv.org/abs/2410.08074).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from tqdm.auto import tqdm

from evaluation.probes.denoising import denoising_loss, draw_noise
from evaluation.probes.pipeline import frozen, twin
from evaluation.probes.rows import SAMPLES, Budget, Return, Row, metered
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Examples, Subject
from pipelines.backbone import Backbone
from pipelines.noise import NoiseSchedule

TUNED = "relearning"
"""Name of the adapter that is fine-tuned."""
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
"""The layers of diffusers' `train_text_to_image_lora.py`."""


def run(subject: Subject, settings: Settings) -> list[Row]:
    """A row for each kind of images and number of steps: fine-tuned on top of the erased model, and on top of
    the base."""
    rows: dict[tuple[bool, int], Row] = {}
    for concept in (True, False):
        if not (concept or subject.retain):
            continue
        for base in subject.sides:
            for steps, found, images, budget in _tune(subject, settings, concept, base):
                if not base:
                    name = f"fine-tuned on {'the concept' if concept else 'unrelated images'}, {steps} steps"
                    prompts = [prompt for _, prompt in subject.plain[:SAMPLES]]
                    rows[concept, steps] = Row(name, found, None, budget, prompts, after=images)
                else:
                    rows[concept, steps].base, rows[concept, steps].before = found, images
    return list(rows.values())


def _tune(
    subject: Subject, settings: Settings, concept: bool, base: bool
) -> Iterator[tuple[int, Return, list[Image.Image], Budget]]:
    """Fine-tune; after each number of steps, what the plain prompts bring."""
    kind, side = "the concept" if concept else "unrelated images", "base" if base else "with the adapter"
    label = f"fine-tuning on {kind}, {side}"
    examples = subject.examples(settings.num_concept_images, concept)
    prompts = [subject.prompt(cell) for cell in examples.cells]
    tuned, budget, generator = (
        twin(subject.pipe),
        Budget(images=len(examples)),
        torch.Generator().manual_seed(settings.seed),
    )
    with frozen(tuned):
        parameters = add_tuned(tuned, settings, [] if base else [subject.adapter])
        optimizer = torch.optim.AdamW(parameters, lr=settings.relearning_learning_rate, weight_decay=1e-2)
        for steps in sorted(settings.relearning_steps):
            with metered(Backbone.of(tuned).denoiser, budget):
                for _ in tqdm(
                    range(budget.steps, steps), desc=label, disable=not subject.progress, leave=False
                ):
                    tuning_step(
                        tuned,
                        optimizer,
                        examples,
                        prompts,
                        batch_size=settings.train_batch_size,
                        generator=generator,
                    )
            budget.steps = steps
            found, images = subject.look(subject.plain, settings.num_images, label, tuned)
            yield steps, found, images, Budget(**vars(budget))


def tuning_step(
    pipe: DiffusionPipeline,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    prompts: list[str],
    *,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """One step of fine-tuning on a batch of the examples with their prompts; the gradient's norm is clipped
    to 1."""
    backbone, schedule = Backbone.of(pipe), NoiseSchedule.of(pipe.scheduler)
    ids = torch.randint(len(examples), (batch_size,), generator=generator)
    latents = examples.latents[ids.to(examples.latents.device)]
    with torch.no_grad():
        conditioning = backbone.encode([prompts[i] for i in ids.tolist()])
    timesteps, noise = draw_noise(schedule, latents, generator)
    loss = denoising_loss(backbone, schedule, latents, timesteps, noise, conditioning=conditioning).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def add_tuned(pipe: DiffusionPipeline, settings: Settings, beside: list[str]) -> list[torch.nn.Parameter]:
    """Add a LoRA to the network, active together with the adapters `beside` and no others, and return its
    float32 parameters; at first it changes nothing."""
    denoiser, rank = Backbone.of(pipe).denoiser, settings.relearning_rank
    torch.manual_seed(settings.seed)
    denoiser.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS),
        adapter_name=TUNED,
    )
    pipe.set_adapters([*beside, TUNED])
    denoiser.requires_grad_(False)
    parameters = [parameter for name, parameter in denoiser.named_parameters() if f".{TUNED}." in name]
    for parameter in parameters:
        parameter.requires_grad_(True)
    cast_training_params(denoiser, dtype=torch.float32)
    return parameters
