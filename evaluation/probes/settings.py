"""The budgets of all probes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from common.flags import SEED, flag

JSON_NAMES = {
    "num_images": "least_images",
    "num_concept_images": "concept_images",
    "train_batch_size": "batch_size",
}
"""What probes.json calls settings that have another name there."""
LEFT, RIGHT, CENTRE = "left", "right", "centre"
"""Parts of an image."""


@dataclass(frozen=True)
class Settings:
    """Budgets of the probes.

    The defaults are for the bundled base; docs/robustness.md has those that are published for full-size ones.
    """

    seed: int = flag(0, within=SEED, help="Seed of everything that a probe draws at random.")
    num_images: int = flag(24, at_least=1, help="Least number of judged images behind each metric.")
    num_concept_images: int = flag(
        24,
        at_least=1,
        help="Number of images of the concept, and of other prompts, to learn from or to begin with.",
    )
    train_batch_size: int = flag(8, at_least=1, help="Noisy images in each optimizer step of a probe.")
    inversion_tokens: tuple[int, ...] = flag(
        (1,), at_least=1, help="Lengths of the embedding, one attempt each."
    )
    inversion_steps: int = flag(300, at_least=1, help="Optimizer steps for each embedding.")
    inversion_learning_rate: float = flag(
        0.1,
        at_least=0,
        help="In units of the vocabulary's root mean square; 0.04 corresponds to 5e-4 for Stable Diffusion "
        "1.x.",
    )
    attack_tokens: int = flag(5, at_least=1, help="Number of words searched for in front of a prompt.")
    attack_steps: int = flag(40, at_least=1, help="Optimizer steps for each prompt.")
    attack_prompts: int = flag(8, at_least=1, help="Most prompts to attack, evenly spaced.")
    attack_learning_rate: float = flag(0.5, at_least=0, help="In units of the vocabulary's root mean square.")
    relearning_steps: tuple[int, ...] = flag(
        (50, 100), at_least=1, help="Steps of fine-tuning after which the concept is asked for."
    )
    relearning_rank: int = flag(4, at_least=1, help="Rank of the LoRA that is fine-tuned.")
    relearning_learning_rate: float = flag(1e-3, at_least=0, help="AdamW's learning rate for that LoRA.")
    noise_etas: tuple[float, ...] = flag(
        (1.7, 3.0),
        above=0,
        help="Noise that the sampler adds on the way, one attempt each; 0 is deterministic, 1 ancestral.",
    )
    completion_shares: tuple[float, ...] = flag(
        (0.1, 0.2, 0.5),
        above=0,
        below=1,
        help="Shares of the steps that the base draws first, one attempt each.",
    )
    image_to_image_strengths: tuple[float, ...] = flag(
        (0.3, 0.5, 0.7),
        above=0,
        at_most=1,
        help="How much of an image of the concept is redrawn, one attempt each; at 1 nothing is left of it.",
    )
    inpainting_parts: tuple[str, ...] = flag(
        (LEFT, CENTRE),
        choices=(LEFT, RIGHT, CENTRE),
        help="Which parts of an image of the concept are redrawn, one attempt each.",
    )

    def as_json(self) -> dict[str, Any]:
        """As probes.json shows them."""
        return {JSON_NAMES.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
