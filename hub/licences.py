"""The licence of an adapter: its base's, unless a person has put in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from common.flags import dump_yaml
from common.names import BUNDLED_PIPELINE

FIELDS = ("license", "license_name", "license_link")
BUNDLED_TEXT = "the pipeline bundled with this project (the canvas)"
"""What a card calls the bundled pipeline, which its metadata cannot name."""
LICENCES = {
    BUNDLED_PIPELINE: "apache-2.0",
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "stabilityai/sd-turbo": "other",
}
OTHER_LICENCES = {
    "stabilityai/sd-turbo": (
        "sai-nc-community",
        "https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md",
    )
}
"""Name and address of a licence that the Hub has no identifier for."""


def licence_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Those of FIELDS that `results` hold, else those of their base."""
    if results.get("license"):
        return {field: results[field] for field in FIELDS if results.get(field)}
    base = results.get("base_model_name_or_path") or ""
    known = (LICENCES.get(base), *OTHER_LICENCES.get(base, ()))
    return {field: value for field, value in zip(FIELDS, known, strict=False) if value}


def licence_by_hand(card: str) -> dict[str, str]:
    """Those of FIELDS that a card's metadata hold, unless this project gives its base the same."""
    metadata = _metadata(card)
    held = {field: metadata[field] for field in FIELDS if isinstance(metadata.get(field), str)}
    base = metadata.get("base_model") or (BUNDLED_PIPELINE if BUNDLED_TEXT in card else "")
    own = licence_of({"base_model_name_or_path": base}) if isinstance(base, str) else {}
    return {} if held == own else held


def with_licence(card: str, licence: Mapping[str, str]) -> str:
    """The card with these in place of its own of FIELDS; one without metadata is left as it is."""
    metadata = _metadata(card)
    if not metadata or not licence:
        return card
    kept = {name: value for name, value in metadata.items() if name not in FIELDS}
    return REGEX_YAML_BLOCK.sub(lambda _: f"---\n{dump_yaml({**kept, **licence})}---\n", card, count=1)


def _metadata(card: str) -> dict[str, Any]:
    """A card's YAML; empty if it has none that is valid."""
    found = REGEX_YAML_BLOCK.match(card)
    try:
        metadata = yaml.safe_load(found[2]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
