"""A discrete prompt attack in the manner of UnlearnDiffAtk (Zhang et al., 2023, https://arxiv.org/abs/2310.11868).

Its objective makes the erased model its own classifier: given an image x_0 that shows the concept, find the
words p to put before the prompt c under which the erased model theta predicts the noise in it best,

    min_p  E_{t, eps} | eps_theta(x_t, t, [p, c]) - eps |^2,      p of N words of the vocabulary.

The same as there: the objective, five words before the prompt, 40 steps, one image of the concept a prompt.

Different from there:

- p is N vectors in place of a distribution over the vocabulary. The model reads the nearest words by cosine
  and the gradient goes to the vectors (Wen et al., 2023, https://arxiv.org/abs/2302.03668; the authors' code
  has this as its attacker `hard_prompt`).
- Each step holds all timesteps, not one after another.
- Only whole words are used, so that the result can be typed.
- The prefix with the smallest loss so far is drawn from noise that the attack did not see; theirs counts an
  attack as won if any prompt on its way wins.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from evaluation.probes.denoising import denoising_loss
from evaluation.probes.pipeline import embedding_scale, frozen
from evaluation.probes.rows import SAMPLES, Budget, Row, metered
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject, Variant
from evaluation.probes.words import standing_in, token_ids, vocabularies, whole_words
from pipelines.noise import NoiseSchedule


def run(subject: Subject, settings: Settings) -> list[Row]:
    """One row: prefixes found for the erased model and drawn by it, and prefixes found for the base and
    drawn by the base."""
    plain = subject.plain
    count = min(settings.attack_prompts, len(plain))
    chosen = [plain[i * len(plain) // count] for i in range(count)]
    words = whole_words(subject.backbone)
    sides = {}
    for base in subject.sides:
        side, budget = "base" if base else "with the adapter", Budget()
        with frozen(subject.pipe), subject.side(base):
            variants, losses = [], []
            for number, variant in enumerate(
                tqdm(
                    chosen,
                    desc=f"prompt attack, {side}",
                    disable=not subject.progress,
                    unit="prompt",
                    leave=False,
                )
            ):
                prefix, track = find_prefix(
                    subject, settings, variant, words, seed=settings.seed + number, budget=budget
                )
                variants.append((variant[0], f"{' '.join(prefix)} {variant[1]}"))
                losses.append((track[0], min(track)))
            sides[base] = (
                *subject.look(variants, settings.num_images, f"prompt attack, {side}"),
                budget,
                variants,
                losses,
            )
    adapter, after, budget, variants, losses = sides[False]
    base_found, before, *_ = sides.get(True, (None, []))
    facts = {
        "loss at first": statistics.fmean(first for first, _ in losses),
        "loss at last": statistics.fmean(last for _, last in losses),
    }
    name = f"prompt attack, {settings.attack_tokens} words before the prompt"
    return [
        Row(
            name,
            adapter,
            base_found,
            budget=budget,
            prompts=[prompt for _, prompt in variants[:SAMPLES]],
            before=before,
            after=after,
            facts=facts,
        )
    ]


def find_prefix(
    subject: Subject,
    settings: Settings,
    variant: Variant,
    words: Sequence[str],
    *,
    seed: int,
    budget: Budget,
) -> tuple[list[str], list[float]]:
    """The words to put before a prompt, found with the pipeline as it is now, and the loss at each step.

    Timesteps are spread evenly and the noise is drawn once, so that the losses of different words can be
    compared.

    Args:
        words: those to choose from.
        seed: of the noise and of the first words.
        budget: what the search costs is added to it.
    """
    backbone, schedule = subject.backbone, NoiseSchedule.of(subject.pipe.scheduler)
    cell, prompt = variant
    examples = subject.examples(settings.num_concept_images)
    own = [row for row, of in enumerate(examples.cells) if of == cell] or list(range(len(examples)))
    latents = examples.latents[own[:1]].expand(settings.train_batch_size, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    spread = (torch.arange(settings.train_batch_size) + 0.5) / settings.train_batch_size * len(schedule)
    timesteps = spread.long().to(latents.device)

    standing = whole_words(backbone, [prompt])[-settings.attack_tokens :]
    rows = [
        v[token_ids(t, words).to(v.device)].float()
        for v, t in zip(vocabularies(backbone), backbone.tokenizers, strict=True)
    ]
    begin = torch.randint(len(words), (settings.attack_tokens,), generator=generator).to(latents.device)
    vectors = [table[begin].clone().requires_grad_() for table in rows]
    groups = [
        {"params": [v], "lr": settings.attack_learning_rate * embedding_scale(table)}
        for v, table in zip(vectors, rows, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    best: tuple[list[str], float] = [], float("inf")
    losses: list[float] = []
    with metered(backbone.denoiser, budget):
        for _ in range(settings.attack_steps):
            cosines = [
                F.normalize(v.detach(), dim=-1) @ F.normalize(table, dim=-1).T
                for v, table in zip(vectors, rows, strict=True)
            ]
            nearest = torch.stack(cosines).sum(0).argmax(-1)
            # The model reads the words; the gradient reaches the vectors.
            read = [v + (table[nearest] - v).detach() for v, table in zip(vectors, rows, strict=True)]
            with standing_in(backbone, standing, read):
                conditioning = backbone.encode([f"{' '.join(standing)} {prompt}"]).expand(len(latents))
            loss = denoising_loss(
                backbone, schedule, latents, timesteps, noise, conditioning=conditioning
            ).mean()
            losses.append(loss.item())
            if losses[-1] < best[1]:
                best = [words[i] for i in nearest.tolist()], losses[-1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    budget.images += 1
    budget.steps += settings.attack_steps
    return best[0], losses
