"""Textual inversion (Gal et al., 2022, https://arxiv.org/abs/2208.01618) against an erased model, after Pham
et al. (2023, https://arxiv.org/abs/2308.01508).

With the model frozen, learn the embeddings v* of k tokens in place of the concept's name,

    v* = argmin_v  E_{x_0, t, eps} | eps_theta(x_t, t, c(v)) - eps |^2,

from images x_0 of the concept. Whatever v* then draws was in the model all along.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from evaluation.probes.denoising import denoising_loss, draw_noise
from evaluation.probes.naming import renamed
from evaluation.probes.pipeline import embedding_scale, frozen
from evaluation.probes.rows import SAMPLES, Budget, Row, metered
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from evaluation.probes.words import standing_in, token_ids, vocabularies, whole_words
from pipelines.noise import NoiseSchedule

BEGINNING = "image"
"""The word whose embedding initialises the learnt ones: the name of the judge's domain ("style", "object"),
else this."""


def run(subject: Subject, settings: Settings) -> list[Row]:
    """A row for each number of tokens: learnt and drawn with the adapter, and learnt and drawn anew in the
    base, if it is a side."""
    rows = []
    for count in settings.inversion_tokens:
        words = whole_words(subject.backbone, subject.examination.prompts + subject.concepts)[-count:]
        variants = [(i, renamed(prompt, subject.concepts, " ".join(words))) for i, prompt in subject.plain]
        name = f"textual inversion, {count} token{'s' if count > 1 else ''}"
        sides = {}
        for base in subject.sides:
            budget, label = Budget(), f"{name}, {'base' if base else 'with the adapter'}"
            with frozen(subject.pipe), subject.side(base):
                vectors, losses = invert(subject, settings, words, budget, label)
                with standing_in(subject.backbone, words, vectors):
                    found, images = subject.look(variants, settings.num_images, label)
            sides[base] = found, images, budget, losses
        adapter, after, budget, losses = sides[False]
        base_found, before, *_ = sides.get(True, (None, []))
        shown = [
            prompt.replace(" ".join(words), " ".join(f"<v{i}>" for i in range(1, count + 1)))
            for _, prompt in variants[:SAMPLES]
        ]
        tenth = max(1, len(losses) // 10)
        facts = {
            "loss at first": statistics.fmean(losses[:tenth]),
            "loss at last": statistics.fmean(losses[-tenth:]),
        }
        rows.append(
            Row(
                name,
                adapter,
                base_found,
                budget=budget,
                prompts=shown,
                before=before,
                after=after,
                facts=facts,
            )
        )
    return rows


def invert(
    subject: Subject, settings: Settings, words: Sequence[str], budget: Budget, label: str
) -> tuple[list[torch.Tensor], list[float]]:
    """The embeddings (K, E) for each text encoder, learnt with the pipeline as it is now, and the loss of
    each step.

    AdamW without decay; a batch of images, timesteps and noise drawn anew for each step.
    """
    backbone, schedule = subject.backbone, NoiseSchedule.of(subject.pipe.scheduler)
    examples = subject.examples(settings.num_concept_images)
    prompts = {cell: renamed(prompt, subject.concepts, " ".join(words)) for cell, prompt in subject.plain}
    beginning = _beginning(subject)
    scales, vectors = [], []
    for vocabulary, tokenizer in zip(vocabularies(backbone), backbone.tokenizers, strict=True):
        scales.append(embedding_scale(vocabulary))
        start = vocabulary[token_ids(tokenizer, [beginning]).to(vocabulary.device)]
        vectors.append(start.float().repeat(len(words), 1).requires_grad_())
    groups = [
        {"params": [v], "lr": settings.inversion_learning_rate * scale}
        for v, scale in zip(vectors, scales, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    generator, losses = torch.Generator().manual_seed(settings.seed), []
    with metered(backbone.denoiser, budget), standing_in(backbone, words, vectors):
        for _ in tqdm(range(settings.inversion_steps), desc=label, disable=not subject.progress, leave=False):
            ids = torch.randint(len(examples), (settings.train_batch_size,), generator=generator)
            latents = examples.latents[ids.to(examples.latents.device)]
            conditioning = backbone.encode([prompts[examples.cells[i]] for i in ids.tolist()])
            timesteps, noise = draw_noise(schedule, latents, generator)
            loss = denoising_loss(
                backbone, schedule, latents, timesteps, noise, conditioning=conditioning
            ).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    budget.images, budget.steps = len(examples), settings.inversion_steps
    return [v.detach() for v in vectors], losses


def _beginning(subject: Subject) -> str:
    words = set(whole_words(subject.backbone))
    return next(
        (domain for domain in subject.examination.targets if domain in words),
        BEGINNING if BEGINNING in words else min(words),
    )
