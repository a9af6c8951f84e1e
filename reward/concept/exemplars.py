"""A concept shown by images instead of words, or beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from common.pictures import no_pictures, pictures_in, read_picture
from reward.concept.automatic import TextEncoder
from reward.concept.spec import SpecError
from reward.concept.words import shared_words


def read_images(directory: str | Path) -> list[Image.Image]:
    """The images of a folder, in the order of their names.

    Raises:
        ValueError: there is no such folder, it holds no image, or one cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise SpecError(f"The image folder {directory} does not exist.")
    paths = pictures_in(directory)
    if not paths:
        raise SpecError(no_pictures(directory))
    return [read_picture(path) for path in paths]


def name_images(embeddings: torch.Tensor, known_prompts: list[str], encode_text: TextEncoder) -> str:
    """What images (N, D) show, in the words that most of their nearest known prompts share.

    Raises:
        SpecError: they share none.
    """
    nearest = (embeddings @ encode_text(known_prompts).T).argmax(dim=1).tolist() if known_prompts else []
    found = shared_words([known_prompts[i] for i in nearest], known_prompts)
    if not found:
        raise SpecError(
            "The concept images have nothing in common that a known prompt names; name it with --concept, or give --forget_prompts FILE."
        )
    return " ".join(found)
