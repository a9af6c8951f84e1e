"""Measurements apart from the judge's verdicts: distances between sets of images, agreement of image and
prompt, drift of retained images.

- CLIP score: 100 times the cosine of image and prompt, not below 0 (Hessel et al., 2021,
  https://arxiv.org/abs/2104.08718), by an open_clip model; over the forget prompts, where it should fall, and
  over the retain prompts, where it should not. `evaluation.intervals.bootstrap` gives the intervals.
- Drift: how far a retain prompt's image moves from the base's image of the same noise: mean absolute
  difference of pixels in percent of their range, and SSIM (Wang et al., 2004), by torchmetrics. No network is
  involved.
- FID (Heusel et al., 2017) and KID (Binkowski et al., 2018) between the retain prompts' images and a
  reference, by torchmetrics, over the features of the network that is named. Values are comparable only for
  the same features, so their name is part of the result. FID is biased upwards for few images, above all if
  they are fewer than the features. KID is not; but against the base's images of the same noise, which are not
  an independent sample, it falls below 0 if an adapter changes little.

Intervals of FID and KID: plus and minus 1.96 bootstrap standard errors over resampled prompts, the same in
both sets if the base is the reference (Efron & Tibshirani, 1993, section 6.4: 50 resamples suffice for a
standard error). Percentiles would be wrong: a resampled set holds images twice, and its FID lies above the
set's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models import inception_v3
from torchvision.transforms.functional import resize

from common.pictures import pictures_in, read_picture
from evaluation.intervals import Z_975
from evaluation.judge import ImageJudge, to_pixels, weights_digest
from evaluation.metrics import mean_interval
from evaluation.weights import load_whole, read_state
from reward.teacher import Teacher

CLIP_SCORE, PIXEL_DRIFT, SSIM, FEATURES = "clip_score", "pixel_drift", "ssim", "features"
RESAMPLES = 50
KID_SUBSET, KID_SUBSETS = 1000, 10
INCEPTION_SIDE = 299

Values = dict[str, np.ndarray]
"""Measurements by name, a row for each image."""


@dataclass(frozen=True)
class Features:
    """A network whose features FID and KID compare.

    Attributes:
        name: as results show it.
        embed: B images of one size -> (B, D) on the CPU.
        identity: a text that distinguishes it from other networks.
    """

    name: str
    embed: Callable[[list[Image.Image]], torch.Tensor]
    identity: str


class Measures:
    """Everything that is measured apart from the verdicts.

    Args:
        features: for FID and KID; None skips them.
        clip: for the CLIP score; None skips it.
        clip_name: as results show it.
        reference: features (N, D) of real images; None compares with the base's images.
        reference_name: as results show it.
    """

    def __init__(
        self,
        features: Features | None = None,
        clip: Teacher | None = None,
        clip_name: str | None = None,
        reference: torch.Tensor | None = None,
        reference_name: str = "the base's images of the same prompts and seeds",
    ) -> None:
        self.features, self.clip, self.clip_name = features, clip, clip_name
        self.reference, self.reference_name = reference, reference_name

    def observe(
        self, images: list[Image.Image], prompts: list[str], base: list[Image.Image] | None
    ) -> Values:
        """Measure each of B images of one size; `base` holds the base's of the same prompts and noise, None
        if these are the base's."""
        found: Values = {}
        if self.features:
            found[FEATURES] = self.features.embed(images).float().numpy()
        if self.clip:
            cosine = (self.clip.encode_images(to_pixels(images)) * self.clip.encode_text(prompts)).sum(-1)
            found[CLIP_SCORE] = (100 * cosine.clamp(min=0)).cpu().numpy()
        if base is not None:
            before, after = ((to_pixels(pictures) + 1) / 2 for pictures in (base, images))
            found[PIXEL_DRIFT] = (100 * (before - after).abs().mean(dim=(1, 2, 3))).numpy()
            found[SSIM] = (
                structural_similarity_index_measure(after, before, data_range=1.0, reduction="none")
                .reshape(-1)
                .numpy()
            )
        return found

    def identity(self) -> str:
        """A text that distinguishes its measurements from others."""
        clip = weights_digest(self.clip.model) if self.clip else ""
        return f"{self.features.identity if self.features else ''} {clip}"

    def summarize(
        self,
        values: Mapping[str, np.ndarray],
        base: Mapping[str, np.ndarray] | None,
        prompt_ids: Sequence[int],
        forget: Sequence[bool],
    ) -> dict[str, dict[str, Any]]:
        """Each measure as `{"mean": …, "ci95": [low, high]}`.

        Args:
            values: of one side, all images.
            base: of the base, in the same order; None if this is the base.
            prompt_ids: for each image, the index of its prompt.
            forget: for each prompt, whether it asks for the concept.
        """
        by_prompt: dict[int, list[int]] = {}
        for row, i in enumerate(prompt_ids):
            by_prompt.setdefault(i, []).append(row)
        asked = {asks: [rows for i, rows in by_prompt.items() if forget[i] == asks] for asks in (True, False)}
        found = {}
        for name, groups in {CLIP_SCORE: (True, False), PIXEL_DRIFT: (False,), SSIM: (False,)}.items():
            for asks in groups:
                if name in values and asked[asks]:
                    suffix = "" if len(groups) == 1 else "_forget" if asks else "_retain"
                    found[name + suffix] = mean_interval(
                        [values[name][rows].tolist() for rows in asked[asks]]
                    )
        if FEATURES in values and asked[False]:
            features = torch.from_numpy(values[FEATURES])
            if self.reference is not None:
                found |= distances(features, self.reference, asked[False], paired=False)
            elif base is not None:
                found |= distances(features, torch.from_numpy(base[FEATURES]), asked[False], paired=True)
        return found

    def names(self) -> dict[str, str]:
        """The networks and the reference, for results."""
        names = {"clip_score": self.clip_name} if self.clip and self.clip_name else {}
        return names | (
            {"features": self.features.name, "reference": self.reference_name} if self.features else {}
        )


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """FID of features (N, D) and (M, D), at least two each."""
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1]), sync_on_compute=False)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """KID of features (N, D) and (M, D), at least two each: over the whole sets up to 1000 images, else the
    mean over 10 subsets of that size."""
    size = min(KID_SUBSET, len(features), len(reference))
    whole = size == len(features) == len(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about keeping all features, which are here already
        metric = KernelInceptionDistance(
            feature=_Given(features.shape[1]),
            subsets=1 if whole else KID_SUBSETS,
            subset_size=size,
            sync_on_compute=False,
        )
    metric.update(reference, real=True)
    metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(0)
        return float(metric.compute()[0])


def distances(
    features: torch.Tensor, reference: torch.Tensor, prompts: Sequence[Sequence[int]], *, paired: bool
) -> dict[str, dict[str, Any]]:
    """FID and KID with intervals (see the module); empty for fewer than two images.

    Args:
        features: (N, D).
        reference: (M, D).
        prompts: the rows of each prompt; other rows are left out, of the reference too if it is paired.
        paired: whether row i of the reference has the prompt and noise of row i of `features`.
    """
    rows = [row for of_prompt in prompts for row in of_prompt]
    if len(rows) < 2 or len(reference) < 2:
        return {}
    generator = np.random.default_rng(0)
    resampled = [
        [row for i in generator.integers(len(prompts), size=len(prompts)) for row in prompts[i]]
        for _ in range(RESAMPLES)
    ]
    found = {}
    for name, distance in {"FID": frechet_distance, "KID": kernel_distance}.items():
        value = distance(features[rows], reference[rows] if paired else reference)
        half = Z_975 * float(
            np.std([distance(features[r], reference[r] if paired else reference) for r in resampled], ddof=1)
        )
        low = value - half
        found[name] = {"mean": value, "ci95": [max(0.0, low) if name == "FID" else low, value + half]}
    return found


def judge_features(judge: ImageJudge, name: str) -> Features:
    """The judge's own features."""
    return Features(f"{name}, its features", judge.embed, judge.identity())


def clip_features(teacher: Teacher, name: str) -> Features:
    """The image encoder of an open_clip model."""
    return Features(
        f"{name}, image encoder",
        lambda images: teacher.encode_images(to_pixels(images)).cpu(),
        weights_digest(teacher.model),
    )


def inception_features(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """The 2048 pooled features of torchvision's Inception v3, which UnlearnCanvas uses for its FID, from a
    file of its weights.

    Args:
        path: `.safetensors`, or a `.pth` whose pickle holds only tensors (`evaluation.weights`).

    Raises:
        ValueError: the file holds no such weights.
    """
    state = read_state(path)
    try:
        model = inception_v3(
            weights=None,
            transform_input=True,
            aux_logits=any(name.startswith("AuxLogits") for name in state),
            init_weights=False,
        )
        load_whole(model, state)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds no weights of torchvision's Inception v3: {str(error).splitlines()[0]}"
        ) from error
    model.fc = nn.Identity()
    model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> torch.Tensor:
        pixels = resize(to_pixels(images), [INCEPTION_SIDE, INCEPTION_SIDE], antialias=True)
        return model(pixels.to(device)).cpu()

    return Features("Inception v3 (torchvision), pooled", embed, weights_digest(model))


def reference_features(
    directory: str | Path, embed: Callable[[list[Image.Image]], torch.Tensor], size: tuple[int, int]
) -> torch.Tensor:
    """Features (N, D) of all pictures below a folder, each resized to `size` (width, height) first.

    Raises:
        ValueError: there are fewer than two, or one cannot be read.
    """
    found = []
    for path in pictures_in(directory):
        image = read_picture(path).resize(size, Image.Resampling.BILINEAR)
        found.append(embed([image]))
    if len(found) < 2:
        raise ValueError(f"{directory} holds {len(found)} pictures; at least 2 are needed as a reference.")
    return torch.cat(found)


class _Given(nn.Module):
    """Features that are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
