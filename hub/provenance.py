"""What an adapter says about itself: the concept it erases and the base it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import canvas
from hub.adapter import read_adapter_metadata
from hub.card import BUNDLED

RESULTS_NAME = "results.json"


def read_results(directory: Path) -> dict[str, Any]:
    """What results.json says; empty if there is none.

    Raises:
        ValueError: it is not a JSON object.
    """
    path = directory / RESULTS_NAME
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return results


def what_adapter_says(directory: Path) -> dict[str, Any]:
    """Concept (list), base and revision as the adapter's results.json or else its header has them; None where neither does.

    Raises:
        ValueError: there is no adapter in the directory, or its results.json is not JSON.
    """
    header = read_adapter_metadata(directory)
    said = header | {"revision": header.get("base_model_revision")} | read_results(directory)
    concept = said.get("concept")
    if isinstance(concept, str):
        concept = json.loads(concept) if concept.startswith("[") else [concept]
    return {"concept": concept, "base": said.get("base_model_name_or_path"), "revision": said.get("revision") or None}


def find_base(given: str | None, recorded: str | None) -> str | Path:
    """The base to load: the one given, else the one the adapter records.

    Raises:
        ValueError: neither names a pipeline that can be found.
    """
    name = given or recorded
    if name is None:
        raise ValueError("The adapter does not say which base it is for; name it with --pretrained_model_name_or_path.")
    if name == BUNDLED:
        return canvas.PIPELINE
    if given is None and "/" not in name and not Path(name).is_dir():
        raise ValueError(f"The adapter was trained on a local pipeline called {name!r}; say where it is with --pretrained_model_name_or_path DIR.")
    return name
