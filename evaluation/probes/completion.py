"""Completion: the base draws the first steps, the erased model the rest (Lu et al., 2025,
https://arxiv.org/abs/2505.17013, "diffusion completion").

x_t holds more and more of the image as it is denoised. An erased model that is handed an x_t in which the
concept has begun either goes on with it, and then still knows it, or leads away from it.

Without the adapter this is nothing but drawing with the base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from evaluation.probes.rows import SAMPLES, Return, Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject


def run(subject: Subject, settings: Settings) -> list[Row]:
    """A row for each share of the steps that the base draws.

    Raises:
        ValueError: a share of the steps is none of them, or all.
    """
    steps, plain = subject.num_inference_steps, subject.plain
    switches = [switch_after(share, steps) for share in settings.completion_shares]
    base: Return | None = None
    before: list[Image.Image] = []
    if True in subject.sides:
        with subject.side(base=True):
            base, before = subject.look(plain, settings.num_images, "completion, base")
    rows = []
    for after in switches:
        name = f"first {after} of {steps} steps by the base"
        with subject.side(base=True):  # every image begins so
            found, images = subject.look(
                plain,
                settings.num_images,
                name,
                callback_on_step_end=hand_over(subject.pipe, after, steps),
            )
        prompts = [prompt for _, prompt in plain[:SAMPLES]]
        rows.append(Row(name, found, base, prompts=prompts, before=before, after=images))
    return rows


def switch_after(share: float, steps: int) -> int:
    """After how many steps the adapter takes over.

    Raises:
        ValueError: after none of them, or after all.
    """
    after = round(share * steps)
    if not 0 < after < steps:
        raise ValueError(
            f"--completion_shares {share:g} of {steps} steps leaves no step to "
            f"{'the base' if after <= 0 else 'the adapter'}; choose another share, or more steps."
        )
    return after


def hand_over(pipe: DiffusionPipeline, after: int, steps: int) -> Callable[..., dict[str, Any]]:
    """A callback for the end of each step of a pipeline whose adapter is disabled: it is enabled after so
    many steps, and disabled after the last one for the next batch."""

    def at_step_end(
        called: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        if step + 1 == after:
            pipe.enable_lora()
        elif step + 1 == steps:
            pipe.disable_lora()
        return tensors

    return at_step_end
