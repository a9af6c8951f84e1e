"""How good a built world is, by its judge: the bars of the world, and sheets of pictures to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log2
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.report import write_json
from benchmarks.worlds.artwork import GUIDANCE
from benchmarks.worlds.artwork.build import Build, labels, pictures, scenes
from benchmarks.worlds.artwork.pack import Artwork, load
from benchmarks.worlds.artwork.scenes import PROMPT, SIZE, caption, with_article
from benchmarks.worlds.canvas.models import pixels
from evaluation.artwork import ArtworkExamination
from evaluation.judge import Judge, to_pixels

FRESH_SEED, PAIR_SEED = 24, 25
FRESH, CATEGORY_IMAGES, PAIR_IMAGES = 4000, 32, 256
"""Pictures that the judge is shown; images of each category, and of pairs, that the pipeline draws."""
Quality = dict[str, float | dict[str, float]]


@torch.no_grad()
def report(build: Build, images: int = 2) -> Quality:
    """Judge on fresh pictures, autoencoder, and pipeline by the judge; writes quality.json and sheets.

    Args:
        images: drawn for each name in each style; a quarter of it, at least one, for each synonym.

    Returns:
        Percentages, but for the reconstructions' PSNR in dB and the categories' entropy in bits.
    """
    artwork = load(build.pack)
    judge = Judge.from_pretrained(build.output_dir / "judge")
    fresh = pixels(pictures(build.pack, FRESH, FRESH_SEED))
    truth = labels(artwork, scenes(artwork, FRESH, FRESH_SEED))
    seen, best = judge.shown(fresh), judge.predict(fresh)
    exact, alone = (seen["object"].float() == truth["object"]).all(dim=1), truth["object"].sum(dim=1) == 1
    quality: Quality = {
        "judge_style": percent(best["style"] == truth["style"]),
        "judge_one_object_exactly": percent(exact[alone]),
        "judge_two_objects_exactly": percent(exact[~alone]),
        "judge_object": percent(truth["object"].gather(1, best["object"][:, None]) > 0),
    }
    pipe = pipeline(build.output_dir / "pipeline")
    quality |= reconstructions(pipe.vae, judge, fresh[:1000], truth["object"][:1000])
    quality |= by_name(pipe, artwork, judge, images, build.output_dir)
    quality |= by_synonym(pipe, artwork, judge, max(1, images // 4))
    quality |= by_category(pipe, artwork, judge, CATEGORY_IMAGES)
    quality |= in_pairs(pipe, artwork, judge, PAIR_IMAGES, build.output_dir)
    write_json(build.output_dir / "quality.json", quality)
    return quality


def percent(right: torch.Tensor) -> float:
    """Share of a mask, in percent."""
    return round(100 * right.float().mean().item(), 2)


def pipeline(directory: Path) -> StableDiffusionPipeline:
    """As a user would draw with it: DDIM without noise."""
    pipe = StableDiffusionPipeline.from_pretrained(directory)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_all(pipe: StableDiffusionPipeline, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """One image of each prompt, in batches of 64."""
    generator, images = torch.Generator().manual_seed(seed), []
    for start in tqdm(range(0, len(prompts), 64), desc=f"{len(prompts)} images"):
        batch = list(prompts[start : start + 64])
        given = {
            "num_inference_steps": ArtworkExamination.num_inference_steps,
            "guidance_scale": GUIDANCE,
            "generator": generator,
        }
        images += pipe(batch, **given).images
    return images


@torch.no_grad()
def reconstructions(
    vae: AutoencoderKL, judge: Judge, x: torch.Tensor, objects: torch.Tensor
) -> dict[str, float]:
    """What the autoencoder leaves of pictures (N, 3, H, W) in [-1, 1] that show `objects` (N, classes)."""
    again = torch.cat([vae(chunk).sample.clamp(-1, 1) for chunk in x.split(100)])
    error = ((again - x) / 2).square().mean()
    best = judge.predict(again)["object"]
    return {
        "reconstruction_psnr_db": round(-10 * error.log10().item(), 2),
        "judge_object_reconstructed": percent(objects.gather(1, best[:, None]) > 0),
    }


def by_name(
    pipe: StableDiffusionPipeline, artwork: Artwork, judge: Judge, images: int, output_dir: Path
) -> Quality:
    """Every object in every style by the usual prompt: how often the judge sees what was asked for."""
    pairs = [(style, name) for style in artwork.styles for name in artwork.names]
    prompts = [PROMPT.format(object=name, style=style) for style, name in pairs]
    drawn = [image for seed in range(images) for image in draw_all(pipe, prompts, seed)]
    seen = judge.verdicts(drawn)
    asked = pairs * images
    style = [verdict["style"] == s for verdict, (s, _) in zip(seen, asked, strict=True)]
    objects = [verdict["object"] == o for verdict, (_, o) in zip(seen, asked, strict=True)]
    sheet(drawn[: len(pairs)], len(artwork.names)).save(output_dir / "contact_sheet.png")
    worst = Counter(o for (_, o), right in zip(asked, objects, strict=True) if not right)
    return {
        "pipeline_style": percent(torch.tensor(style)),
        "pipeline_object": percent(torch.tensor(objects)),
        "pipeline_object_missed_most": {name: float(n) for name, n in worst.most_common(8)},
    }


def by_synonym(pipe: StableDiffusionPipeline, artwork: Artwork, judge: Judge, images: int) -> Quality:
    """Every synonym in every style: how often the judge sees the object that it means."""
    asked = [(style, word) for style in artwork.styles for word in artwork.synonyms] * images
    drawn = draw_all(pipe, [caption(with_article(word), style) for style, word in asked], 100)
    right = [
        verdict["object"] == artwork.synonyms[word]
        for verdict, (_, word) in zip(judge.verdicts(drawn), asked, strict=True)
    ]
    return {"pipeline_synonym": percent(torch.tensor(right))}


def by_category(pipe: StableDiffusionPipeline, artwork: Artwork, judge: Judge, images: int) -> Quality:
    """Entropy in bits, over the members, of what category prompts draw, and what it would be if all members
    were drawn equally often; and how often a member is drawn."""
    entropy, most, members = {}, {}, []
    for category, names in artwork.categories.items():
        styles = [artwork.styles[i % len(artwork.styles)] for i in range(images)]
        drawn = draw_all(pipe, [caption(with_article(category), style) for style in styles], 200)
        seen = Counter(verdict["object"] for verdict in judge.verdicts(drawn))
        members += [name in names for name in seen.elements()]
        shares = np.array([seen[name] for name in names if seen[name]], dtype=float)
        shares /= shares.sum()
        entropy[category] = round(float(-(shares * np.log2(shares)).sum()), 2)
        most[category] = round(log2(len(names)), 2)
    return {
        "category_entropy_bits": entropy,
        "category_entropy_at_most": most,
        "pipeline_category_member": percent(torch.tensor(members)),
    }


def in_pairs(
    pipe: StableDiffusionPipeline, artwork: Artwork, judge: Judge, images: int, output_dir: Path
) -> Quality:
    """Prompts of two objects: how often the judge sees both, and one at least."""
    rng = np.random.default_rng(PAIR_SEED)
    asked = [tuple(artwork.names[i] for i in rng.choice(len(artwork.names), 2, False)) for _ in range(images)]
    prompts = [
        caption(" and ".join(map(with_article, pair)), artwork.styles[i % len(artwork.styles)])
        for i, pair in enumerate(asked)
    ]
    drawn = draw_all(pipe, prompts, 300)
    shown = judge.shown(to_pixels(drawn))["object"]
    there = torch.stack(
        [shown[row, [artwork.names.index(name) for name in pair]] for row, pair in enumerate(asked)]
    )
    sheet(drawn[:64], 16).save(output_dir / "contact_sheet_pairs.png")
    return {"pipeline_both_of_two": percent(there.all(1)), "pipeline_one_of_two": percent(there.any(1))}


def sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """The images in rows, uncurated."""
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (SIZE * columns, SIZE * rows), "white")
    for i, image in enumerate(images):
        whole.paste(image, (SIZE * (i % columns), SIZE * (i // columns)))
    return whole
