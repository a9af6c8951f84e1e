"""What an adapter says it erases, and what its file for other programs is called after it."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from common.texts import folded

KOHYA_NAME = "pytorch_lora_weights_kohya.safetensors"
"""The same adapter in kohya's format, next to the one in diffusers', if it does not say what it erases."""
LONGEST, LONGEST_BYTES = 80, 255
"""Of a file's name: characters, and what file systems take."""


def recorded_concepts(said: Mapping[str, Any]) -> list[str]:
    """The concepts that a header or results name; empty if they name none.

    Args:
        said: with `concept`, a list or a text; in a header the text is a list in JSON.
    """
    concept = said.get("concept") or []
    if not isinstance(concept, str):
        return (
            [item for item in concept if isinstance(item, str)] if isinstance(concept, list | tuple) else []
        )
    try:
        found = json.loads(concept) if concept.startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    # A text that only looks like a list is itself a concept.
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else [concept]


def kohya_name(header: Mapping[str, Any]) -> str:
    """The name of an adapter's file in kohya's format: the concept's, if its header names one."""
    concepts = recorded_concepts(header)
    return file_of(concepts) if concepts else KOHYA_NAME


def file_of(concepts: Sequence[str]) -> str:
    """The name of the file that erases them, so that those of several concepts can lie side by side:
    "Van Gogh style" -> `no-van-gogh-style.safetensors`; a hash where no readable name is left, or too long a
    one."""
    words = [_hyphenated(concept) for concept in concepts]
    name = f"no-{'-'.join(words)}.safetensors"
    if all(words) and len(name) <= LONGEST and len(name.encode()) <= LONGEST_BYTES:
        return name
    digest = hashlib.sha256("\n".join(map(folded, concepts)).encode()).hexdigest()
    return f"no-concept-{digest[:8]}.safetensors"


def _hyphenated(text: str) -> str:
    """Its words, of letters, their marks and digits."""
    return "-".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded(text)).split())
