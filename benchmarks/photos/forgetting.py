"""How well a pipeline has forgotten a class, as Selective Amnesia and SalUn measure it: `python -m
benchmarks.photos.forgetting`.

Of 500 images of the class: the share in which the judge sees it, the mean probability that the judge gives
it, and the mean entropy of what the judge says (Heng & Soh, 2023, https://arxiv.org/abs/2305.10120; Fan et
al., 2024, https://arxiv.org/abs/2310.12508). Of the other classes: the distance of their images to their test
photographs (FID over the judge's features). Without an adapter every class is measured on the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save

from benchmarks.report import write_json
from benchmarks.worlds.canvas.models import pixels
from benchmarks.worlds.photos.build import PROMPT
from benchmarks.worlds.photos.data import CLASSES, Photos, load_photos
from common.errors import friendly_errors
from common.files import write_bytes
from common.flags import flag, parse
from evaluation.judge import Judge
from evaluation.measures import frechet_distance
from hub.adapter import load_adapter
from pipelines.base import load_pipeline
from pipelines.generate import evaluation_mode, generate

NUM_IMAGES, SHARE_OF_OTHERS = 500, 10
"""Images of the class, and for how many of them there is one of each other class."""


class Observed(NamedTuple):
    """What the judge makes of N images."""

    probabilities: torch.Tensor
    """(N, 10), of each class."""
    features: torch.Tensor
    """(N, D), before its head."""
    asked: torch.Tensor
    """(N,) int64, the class that the prompt asks for."""


@torch.no_grad()
def observe(pipe: StableDiffusionPipeline, judge: Judge, counts: Mapping[str, int]) -> Observed:
    """Draw a number of images of each class, with the seeds 0, 1, 2, ..., and let the judge look at them."""
    probabilities, features, asked = [], [], []
    head = judge.heads["object"]
    with evaluation_mode(pipe):
        for name, count in counts.items():
            prompt = PROMPT.format(object=name)
            images = [image for *_, image in generate(pipe, [prompt], range(count), progress=name)]
            for start in range(0, count, 100):
                features.append(judge.embed(images[start : start + 100]))
                probabilities.append(head(features[-1].to(head.weight.device)).softmax(-1).cpu())
            asked.append(torch.full((count,), CLASSES.index(name)))
    return Observed(torch.cat(probabilities), torch.cat(features), torch.cat(asked))


@torch.no_grad()
def photograph_features(judge: Judge, photos: Photos, directory: Path) -> torch.Tensor:
    """(N, D): what the judge makes of photographs, before its head; kept in the directory for the next
    measurement by the same judge."""
    kept = directory / f"photographs-{judge.identity()[:16]}.safetensors"
    if kept.is_file():
        return load_file(kept)["features"]
    features = torch.cat([judge.features(pixels(chunk)) for chunk in photos.images.split(500)])
    write_bytes(kept, save({"features": features}))
    return features


def num_others(num_images: int) -> int:
    """Number of images of every other class that go with those of the forgotten one."""
    return -(-num_images // SHARE_OF_OTHERS)


def class_wise(
    seen: Observed, photographs: torch.Tensor, labels: torch.Tensor, forgotten: str
) -> dict[str, float]:
    """UA (percent), mean probability of the forgotten class, mean entropy (nats), and FID of the others.

    Args:
        photographs: features (M, D) of real photographs.
        labels: (M,) their classes.
    """
    target = CLASSES.index(forgotten)
    of_it = seen.probabilities[seen.asked == target]
    each = num_others(len(of_it))
    others = torch.cat(
        [seen.features[seen.asked == label][:each] for label in range(len(CLASSES)) if label != target]
    )
    return {
        "UA": 100 * (of_it.argmax(-1) != target).float().mean().item(),
        "probability": of_it[:, target].mean().item(),
        "entropy": torch.special.entr(of_it).sum(-1).mean().item(),
        "FID": frechet_distance(others, photographs[labels != target]),
    }


@dataclass(frozen=True)
class ForgettingConfig:
    """What is measured."""

    base: Path = flag(metavar="DIR", help="What `python -m benchmarks.worlds.photos` has written.")
    output: Path = flag(help="The JSON file: metrics by class.")
    pipeline: Path | None = flag(
        None, metavar="DIR", help="A pipeline in place of the base's, with the same judge."
    )
    adapter: Path | None = flag(None, metavar="DIR", help="The adapter. Default: none.")
    forgotten: str | None = flag(
        None, choices=tuple(CLASSES), help="The class that was to be forgotten. Default: each in turn."
    )
    num_images: int = flag(
        NUM_IMAGES, at_least=1, help="Images of the class; a tenth as many of every other."
    )


def parse_config(arguments: Sequence[str] | None = None) -> ForgettingConfig:
    """The settings of a command line."""
    return parse(ForgettingConfig, arguments, __doc__, prog="python -m benchmarks.photos.forgetting")


def main(config: ForgettingConfig) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = Judge.from_pretrained(config.base / "judge")
    test = load_photos(None, config.base / "work" / "photos.safetensors")["test"]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    photographs = photograph_features(judge, test, config.output.parent)
    pipe = load_pipeline(config.pipeline or config.base / "pipeline").to(device)
    if config.adapter:
        load_adapter(pipe, config.adapter)
    forgotten = [config.forgotten] if config.forgotten else CLASSES
    others = num_others(config.num_images)
    counts = {name: config.num_images if name in forgotten else others for name in CLASSES}
    seen = observe(pipe, judge.to(device), counts)
    found = {name: class_wise(seen, photographs, test.labels, name) for name in forgotten}
    write_json(config.output, found)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
