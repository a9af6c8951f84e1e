"""A concept shown by images instead of words, or beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from reward.spec.automatic import TextEncoder
from reward.spec.concept import SpecError
from reward.spec.words import shared_words

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def read_images(directory: str | Path) -> list[Image.Image]:
    """The images of a folder, in the order of their names, as RGB.

    Raises:
        SpecError: there is no such folder, it holds no image, or one cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise SpecError(f"The image folder {directory} does not exist.")
    paths = sorted(p for p in directory.iterdir() if p.suffix.casefold() in SUFFIXES)
    if not paths:
        raise SpecError(f"{directory} holds no image ({', '.join(sorted(SUFFIXES))}).")
    images = []
    for path in paths:
        try:
            images.append(Image.open(path).convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise SpecError(f"The image {path} cannot be read: {error}") from error
    return images


def name_images(embeddings: torch.Tensor, known_prompts: list[str], encode_text: TextEncoder) -> str:
    """What images (N, D) show, in the words that most of their nearest known prompts share.

    Raises:
        SpecError: they share none.
    """
    nearest = (embeddings @ encode_text(known_prompts).T).argmax(dim=1).tolist() if known_prompts else []
    found = shared_words([known_prompts[i] for i in nearest], known_prompts)
    if not found:
        raise SpecError("The concept images have nothing in common that a known prompt names; name it with --concept, or give --forget_prompts FILE.")
    return " ".join(found)
