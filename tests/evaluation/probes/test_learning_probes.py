"""Probes that learn do learn: what they lower falls more for the concept than for anything else."""

from __future__ import annotations

import dataclasses

import torch

from evaluation.probes.attack import find_prefix
from evaluation.probes.denoising import denoising_loss
from evaluation.probes.inversion import invert
from evaluation.probes.pipeline import frozen, twin
from evaluation.probes.relearning import add_tuned, tuning_step
from evaluation.probes.rows import Budget
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Examples, Subject
from evaluation.probes.words import standing_in, whole_words
from pipelines.backbone import Backbone
from pipelines.noise import NoiseSchedule


def constant(subject: Subject, value: float) -> Examples:
    """Images of which the UNet knows nothing: latents of one value."""
    return Examples(torch.full((4, 4, 8, 8), value), [subject.forget[0]] * 4)


@torch.no_grad()
def error(pipe, examples: Examples, prompt: str) -> float:
    backbone, generator = Backbone.of(pipe), torch.Generator().manual_seed(9)
    latents = examples.latents.repeat(16, 1, 1, 1)
    timesteps = torch.randint(1000, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return (
        denoising_loss(
            backbone,
            NoiseSchedule.of(pipe.scheduler),
            latents,
            timesteps,
            noise,
            conditioning=backbone.encode([prompt]).expand(len(latents)),
        )
        .mean()
        .item()
    )


def test_relearning_lowers_the_loss_on_its_images_more_than_on_others(subject: Subject) -> None:
    concept, control = constant(subject, 8.0), constant(subject, -8.0)
    subject._drawn = {(True, 4): concept}
    settings = Settings(
        num_concept_images=4,
        train_batch_size=4,
        relearning_steps=(60,),
        relearning_rank=4,
        relearning_learning_rate=1e-2,
        num_images=1,
    )
    prompt = subject.prompt(subject.forget[0])
    before = [error(subject.pipe, images, prompt) for images in (concept, control)]
    tuned = twin(subject.pipe)
    with frozen(tuned):
        parameters = add_tuned(tuned, settings, [subject.adapter])
        assert (
            error(tuned, concept, prompt) == before[0]
        )  # begins as the identity, on top of the erased model
        optimizer, generator = (
            torch.optim.AdamW(parameters, lr=settings.relearning_learning_rate),
            torch.Generator().manual_seed(0),
        )
        for _ in range(60):
            tuning_step(
                tuned,
                optimizer,
                concept,
                [prompt] * 4,
                batch_size=settings.train_batch_size,
                generator=generator,
            )
        after = [error(tuned, images, prompt) for images in (concept, control)]
    gains = [one - other for one, other in zip(before, after, strict=True)]
    assert gains[0] > 0 and gains[0] > gains[1]
    assert [error(subject.pipe, images, prompt) for images in (concept, control)] == before


def test_inversion_lowers_the_loss_on_its_images_more_than_on_others(subject: Subject) -> None:
    concept, control = constant(subject, 8.0), constant(subject, -8.0)
    subject._drawn = {(True, 4): concept}
    settings = Settings(
        num_concept_images=4, train_batch_size=8, inversion_steps=80, inversion_learning_rate=1.0
    )
    words = whole_words(subject.backbone, subject.examination.prompts + subject.concepts)[-2:]
    prompt = f"a cat image in {' '.join(words)} style"
    with frozen(subject.pipe):
        vectors, losses = invert(
            subject,
            dataclasses.replace(settings, inversion_steps=1, inversion_learning_rate=0.0),
            words,
            Budget(),
            "",
        )
        with standing_in(subject.backbone, words, vectors):
            before = [error(subject.pipe, images, prompt) for images in (concept, control)]
        vectors, losses = invert(subject, settings, words, Budget(), "")
        with standing_in(subject.backbone, words, vectors):
            after = [error(subject.pipe, images, prompt) for images in (concept, control)]
    assert len(losses) == 80
    gains = [one - other for one, other in zip(before, after, strict=True)]
    assert gains[0] > 0 and gains[0] > gains[1]


def test_the_attack_finds_words_that_can_be_typed(subject: Subject) -> None:
    subject._drawn = {(True, 4): constant(subject, 2.0)}
    settings = Settings(num_concept_images=4, train_batch_size=4, attack_steps=25, attack_tokens=3)
    words = whole_words(subject.backbone)
    with frozen(subject.pipe):
        prefix, losses = find_prefix(subject, settings, subject.plain[0], words, seed=0, budget=Budget())
    assert len(prefix) == 3 and set(prefix) <= set(words)
    assert min(losses) < losses[0]
    typed = f"{' '.join(prefix)} {subject.plain[0][1]}"
    ids = subject.pipe.tokenizer(typed, add_special_tokens=False).input_ids
    assert [subject.pipe.tokenizer.decode([i]).strip() for i in ids[:3]] == prefix
    # The best loss is that of the words themselves, drawn as anyone would type them.
    latents, generator = (
        constant(subject, 2.0).latents[:1].expand(4, -1, -1, -1),
        torch.Generator().manual_seed(0),
    )
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([125, 375, 625, 875])
    with torch.no_grad():
        found = denoising_loss(
            subject.backbone,
            NoiseSchedule.of(subject.pipe.scheduler),
            latents,
            timesteps,
            noise,
            conditioning=subject.backbone.encode([typed]).expand(4),
        ).mean()
    torch.testing.assert_close(found.item(), min(losses), rtol=1e-4, atol=1e-5)


def test_words_stand_in_only_while_they_do(subject: Subject) -> None:
    word = whole_words(subject.backbone)[-1]
    with torch.no_grad():
        before = subject.backbone.encode([word, "a cat"]).states
        with standing_in(subject.backbone, [word], [torch.ones(1, before.shape[-1])]):
            within = subject.backbone.encode([word, "a cat"]).states
        after = subject.backbone.encode([word, "a cat"]).states
    assert torch.equal(before, after)
    assert not torch.equal(before[0], within[0]) and torch.equal(before[1], within[1])
