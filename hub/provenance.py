"""What an adapter's files say: the concept it erases and the base it is for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import canvas
from common.flags import by_name, flag
from common.names import BUNDLED_PIPELINE, is_valid_id
from hub.adapter import find_adapter, read_adapter_metadata
from hub.concepts import recorded_concepts
from hub.results import read_results
from pipelines.base import BaseConfig

NOTHING_SAID: dict[str, Any] = {"concept": None, "base": None, "revision": None, "without_t5": False}
"""By files that say nothing."""


@dataclass(frozen=True)
class AdapterBase(BaseConfig):
    """Base model."""

    pretrained_model_name_or_path: str | None = flag(
        None,
        help="Base pipeline: a diffusers directory, a Hub id, or a .safetensors checkpoint in one file. "
        "Default: what the adapter says.",
        published=by_name,
    )


def what_adapter_says(directory: Path, name: str | None = None) -> dict[str, Any]:
    """Concept (list), base and revision from the adapter's results.json, else from its header, None if
    neither has them; and whether it was trained without the base's T5.

    Args:
        name: the adapter's file. Default: as `find_adapter` finds it.

    Raises:
        ValueError: there is no adapter in the directory, or its results.json is not JSON.
    """
    header = read_adapter_metadata(directory, name or find_adapter(directory).name)
    said = header | {"revision": header.get("base_model_revision")} | read_results(directory)
    return {
        "concept": recorded_concepts(said) or None,
        "base": said.get("base_model_name_or_path"),
        "revision": said.get("revision") or None,
        "without_t5": was_without_t5(said),
    }


def was_without_t5(said: Mapping[str, Any]) -> bool:
    """Whether results, or a header, say that the run left the base's T5 out."""
    settings = said.get("settings")
    if isinstance(settings, str):
        try:
            settings = json.loads(settings)
        except (ValueError, RecursionError):
            return False
    return isinstance(settings, Mapping) and settings.get("without_t5") is True


def find_base(given: str | None, recorded: str | None) -> str | Path:
    """The base to load: the one given, else the one the adapter records.

    Raises:
        ValueError: neither names a pipeline that can be found.
    """
    name = given or recorded
    if name is None:
        raise ValueError(
            "No adapter says which base it is for; name it with --pretrained_model_name_or_path."
        )
    if name == BUNDLED_PIPELINE:
        return canvas.PIPELINE
    if given is None and not (("/" in name and is_valid_id(name)) or os.path.isdir(name)):
        raise ValueError(
            f"The adapter was trained on a local pipeline called {name!r}; give its path with "
            "--pretrained_model_name_or_path DIR."
        )
    return name


def resolve_base(config: AdapterBase, said: Mapping[str, Any]) -> AdapterBase:
    """The base to load: the one that is named, else the one that the adapter records, at its revision. It is
    without its T5 where the adapter was trained without it.

    Args:
        said: by `what_adapter_says`.

    Raises:
        ValueError: neither names a pipeline that can be found.
    """
    given = config.pretrained_model_name_or_path
    return replace(
        config,
        pretrained_model_name_or_path=str(find_base(given, said["base"])),
        revision=config.revision or (None if given else said["revision"]),
        without_t5=config.without_t5 or said["without_t5"],
    )
