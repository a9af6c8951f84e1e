"""Judges that were not trained here: a transformers image classifier, and an open_clip model that sees the
nearest of several texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from evaluation.judge import CONFIG_NAME, ImageJudge, Judge, to_pixels, weights_digest
from reward.classifier import ClassifierTeacher
from reward.teacher import Teacher

DOMAIN = "label"
"""The only domain of a judge whose classes have no kinds."""


class NearestLabel:
    """Sees the label with the highest score: a classifier's logit, or the cosine of an image and a text.

    Args:
        model: images -> vectors.
        rows: (K, D), a vector for each label; its product with an image's is the label's score.
    """

    prompt = ""

    def __init__(self, model: Teacher, labels: Sequence[str], rows: torch.Tensor) -> None:
        self.model, self.rows = model, rows
        self.domains = {DOMAIN: list(labels)}

    def verdicts(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """For each of B images of one size, the label it sees."""
        nearest = (self.model.encode_images(to_pixels(images)) @ self.rows.T).argmax(-1).tolist()
        return [{DOMAIN: self.domains[DOMAIN][i]} for i in nearest]

    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        """The vectors (B, D) of images, on the CPU."""
        return self.model.encode_images(to_pixels(images)).cpu()

    def identity(self) -> str:
        """A hash of the model's weights and of the labels."""
        return weights_digest(self.model.model, *self.domains[DOMAIN])


def classifier_judge(name_or_path: str, device: torch.device | str = "cpu") -> NearestLabel:
    """A transformers image classifier, directory or Hub id, safetensors only.

    Raises:
        ValueError: there is none.
    """
    model = ClassifierTeacher.from_pretrained(name_or_path, device=device)
    return NearestLabel(model, model.labels, torch.eye(len(model.labels), device=model.device))


def zero_shot_judge(teacher: Teacher, labels: Sequence[str]) -> NearestLabel:
    """An open_clip model that sees the nearest of the labels; they are compared as they are, so word them as
    captions."""
    return NearestLabel(teacher, labels, teacher.encode_text(list(labels)))


def load_judge(name_or_path: str | Path, device: torch.device | str = "cpu") -> ImageJudge:
    """A judge of this project (a directory whose config.json names `domains`), or else a transformers image
    classifier.

    Raises:
        ValueError: it is neither.
    """
    config = Path(name_or_path) / CONFIG_NAME
    if Path(name_or_path).is_dir():
        try:
            said = json.loads(config.read_text(encoding="utf-8"))
            ours = not (isinstance(said, dict) and "architectures" in said)
        except (OSError, ValueError, RecursionError):
            ours = True  # its loader says what is wrong
        if ours:
            return Judge.from_pretrained(name_or_path).to(device)
    return classifier_judge(str(name_or_path), device)
