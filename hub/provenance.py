"""What an adapter's files say: the concept it erases and the base it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import canvas
from common.flags import by_name, flag
from common.names import BUNDLED_PIPELINE
from hub.adapter import find_adapter, read_adapter_metadata
from hub.card import DEFINED
from hub.concepts import recorded_concepts
from pipelines.base import BaseConfig

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class AdapterBase(BaseConfig):
    """Base model."""

    pretrained_model_name_or_path: str | None = flag(
        None,
        help="Base pipeline: a diffusers directory, a Hub id, or a .safetensors checkpoint in one file. "
        "Default: what the adapter says.",
        published=by_name,
    )


def read_results(directory: Path) -> dict[str, Any]:
    """The content of results.json; empty if there is none.

    Raises:
        ValueError: it is not a JSON object.
    """
    path = directory / RESULTS_NAME
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    check_results(results, path)
    return results


def check_results(results: Any, path: Path) -> None:
    """Refuse results that no card, header or page can be made from.

    Raises:
        ValueError: a value has another type than this project writes; missing values are fine.
    """
    if not isinstance(results, dict):
        raise ValueError(f"{path} is not a JSON object.")
    texts = [
        *TEXTS,
        *(
            name
            for name in ("concept", "forget_prompts", "retain_prompts")
            if isinstance(results.get(name), str)
        ),
    ]
    wrong = [name for name in texts if not isinstance(results.get(name), str | None)]
    wrong += [name for name in LISTS if name not in texts and not _is_list(results.get(name))]
    wrong += [name for name in OBJECTS if not isinstance(results.get(name), dict | None)]
    if not wrong:
        wrong = [
            f"{side}.{name}"
            for side in ("base", "adapter")
            for name in _wrong_metrics(results.get(side) or {})
        ]
        wrong += [
            f"targets.{domain}"
            for domain, classes in (results.get("targets") or {}).items()
            if not _is_list(classes)
        ]
        wrong += [
            f"prompts.{name}"
            for name in ("forget", "retain")
            if results.get("prompts") and not _is_number(results["prompts"].get(name))
        ]
    if not wrong and not _are_weights(results.get("scales") or []):
        wrong = ["scales"]
    if not wrong and not _is_text(results):
        wrong = ["a text"]
    if wrong:
        raise ValueError(f"{path} is not as this project writes it: {wrong[0]!r} has another type.")


TEXTS = (
    "base_model_name_or_path",
    "revision",
    "judge",
    "method",
    "date",
    "command",
    "license",
    "license_name",
    "license_link",
    "pipeline_class",
    "reward_model",
    "reward_model_revision",
    "critic_model",
    "critic_model_revision",
)
LISTS = ("concept", "forget_prompts", "retain_prompts", "seeds")
OBJECTS = ("base", "adapter", "settings", "versions", "training", "targets", "prompts")


def _is_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str | int) for item in value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _are_weights(sides: Any) -> bool:
    """Whether it is a list of sides, each with the adapter's weight."""
    return isinstance(sides, list) and all(
        isinstance(side, dict) and _is_number(side.get("scale")) for side in sides
    )


def _is_text(value: Any) -> bool:
    """Whether all text can be written as UTF-8: JSON can spell half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong_metrics(side: dict[str, Any]) -> list[str]:
    """Names of malformed values of base or adapter: percentages, their intervals, and the classes' own."""
    wrong = [name for name in DEFINED if not (side.get(name) is None or _is_number(side[name]))]
    intervals, classes = side.get("ci95") or {}, side.get("per_class") or {}
    if not isinstance(intervals, dict) or not all(
        _is_number(pair)
        or pair is None
        or (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)))
        for pair in intervals.values()
    ):
        wrong.append("ci95")
    if not isinstance(classes, dict) or not all(
        isinstance(found, dict) and all(map(_is_number, found.values())) for found in classes.values()
    ):
        wrong.append("per_class")
    return wrong


def what_adapter_says(directory: Path, name: str | None = None) -> dict[str, Any]:
    """Concept (list), base and revision from the adapter's results.json, else from its header; None if
    neither has them.

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
    }


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
    if given is None and "/" not in name and not Path(name).is_dir():
        raise ValueError(
            f"The adapter was trained on a local pipeline called {name!r}; give its path with "
            "--pretrained_model_name_or_path DIR."
        )
    return name


def resolve_base(config: AdapterBase, said: Mapping[str, Any]) -> AdapterBase:
    """The base to load: the one that is named, else the one that the adapter records, at its revision.

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
    )
