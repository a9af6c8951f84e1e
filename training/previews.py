"""Pictures of base and adapter side by side while a run goes on."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from environment.environment import Environment
from evaluation.grid import Pair, before_after
from pipelines.generate import adapter_disabled, evaluation_mode, generate
from training.config import ValidationConfig
from training.setup import Run


def validation_prompts(config: ValidationConfig, env: Environment) -> list[tuple[str, bool]]:
    """Prompts of the preview, each with whether it asks for the concept."""
    forget, retain = env.spec.forget_prompts, env.spec.retain_prompts
    if config.validation_prompt:
        return [(prompt, prompt in forget) for prompt in config.validation_prompt]
    kept = config.num_validation_images // 2
    asked = config.num_validation_images - kept
    return [(p, True) for p in spread(forget, asked)] + [(p, False) for p in spread(retain, kept)]


def spread(prompts: list[str], count: int) -> list[str]:
    """`count` prompts at a stride prime to the length of the list, which walks through all factors of a
    product alike."""
    least = max(1, len(prompts) // max(1, count))
    stride = next(s for s in range(least, len(prompts) + 2) if math.gcd(s, len(prompts)) == 1)
    return [prompts[i * stride % len(prompts)] for i in range(min(count, len(prompts)))]


def draw(run: Run, prompts: list[str]) -> list[Image.Image]:
    """One image for each prompt at a fixed seed, drawn by the pipeline as a user would call it."""
    pipe, config = run.env.pipe, run.config
    with run.env.on_device(), evaluation_mode(pipe):
        drawn = generate(
            pipe,
            prompts,
            [config.output.seed],
            guidance_scale=config.validation.validation_guidance_scale,
            batch_size=run.env.batch_size,
        )
        return [image for _, _, image in drawn]


def draw_base(run: Run) -> list[Image.Image]:
    """The previews of the base, on the process that shows them and if there are any."""
    prompts = validation_prompts(run.config.validation, run.env)
    if not (run.is_main and run.config.validation.validation_steps):
        return []
    with adapter_disabled(run.env.pipe):
        return draw(run, [prompt for prompt, _ in prompts])


def preview_pairs(run: Run, before: list[Image.Image] | None = None) -> list[Pair]:
    """The prompts drawn by the base (unless `before` is given) and with the adapter, from the same noise."""
    prompts = validation_prompts(run.config.validation, run.env)
    texts = [prompt for prompt, _ in prompts]
    if before is None:
        with adapter_disabled(run.env.pipe):
            before = draw(run, texts)
    after = draw(run, texts)
    return [Pair(prompt, b, a, forget) for (prompt, forget), b, a in zip(prompts, before, after, strict=True)]


def log_validation(run: Run, before: list[Image.Image], iteration: int) -> None:
    """Write the preview, adapter beside base, as a picture, and send it to the trackers."""
    path = run.config.output.output_dir / "previews" / f"iteration-{iteration:04d}.png"
    title = f"Erasing {', '.join(run.env.spec.concepts)}: iteration {iteration}"
    before_after(preview_pairs(run, before), path, title)
    with Image.open(path) as image:
        run.tracking.show("validation", np.asarray(image.convert("RGB")), iteration, path.parent)
