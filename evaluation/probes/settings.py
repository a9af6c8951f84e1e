"""The budgets of all probes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How much is spent on each probe; the defaults are for the bundled base, docs/robustness.md has those
    that are published for full-size ones.

    Attributes:
        seed: of everything that is drawn at random.
        least_images: a row has at least as many judged images.
        concept_images: images of the concept, and of other prompts, to learn from.
        batch_size: noisy images in an optimizer step.
        inversion_tokens: lengths of the embeddings that are learnt, one row each.
        inversion_steps: optimizer steps for each.
        inversion_learning_rate: in units of the vocabulary's root mean square; 0.04 is what 5e-4 is for
            Stable Diffusion 1.x.
        attack_tokens: length of the prefix.
        attack_steps: optimizer steps for each prompt.
        attack_prompts: how many prompts are attacked at most.
        attack_learning_rate: in units of the vocabulary's root mean square.
        relearning_steps: after how many steps of fine-tuning the concept is asked for.
        relearning_rank: of the LoRA that is fine-tuned.
        relearning_learning_rate: of it.
    """

    seed: int = 0
    least_images: int = 24
    concept_images: int = 24
    batch_size: int = 8
    inversion_tokens: tuple[int, ...] = (1,)
    inversion_steps: int = 300
    inversion_learning_rate: float = 0.1
    attack_tokens: int = 5
    attack_steps: int = 40
    attack_prompts: int = 8
    attack_learning_rate: float = 0.5
    relearning_steps: tuple[int, ...] = (50, 100)
    relearning_rank: int = 4
    relearning_learning_rate: float = 1e-3
