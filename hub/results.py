"""The only readers of results.json, probes.json and diagnostics.jsonl, and what these files hold.

Whoever wrote a file, what comes out of a reader has the types below. A field that this version does not know
is kept as it is, and shown by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from common.flags import Range
from common.schema import (
    Length,
    Misfit,
    NotJson,
    Spelt,
    check_type,
    parse_json,
    read_bytes,
    read_json,
)

RESULTS_NAME, PROBES_NAME, DIAGNOSTICS_NAME = "results.json", "probes.json", "diagnostics.jsonl"
LONGEST_DIAGNOSTICS = 512 * 2**20
"""Bytes."""

Percent = Annotated[float, Range(0, 100)]
Interval = Annotated[list[Percent], Length(2)]
Count = Annotated[int, Range(0, 1e15)]
Index = Annotated[int, Range(0, 1e9)]
Amount = Annotated[float, Range(0, 1e15)]
Weight = Annotated[float, Range(-1e6, 1e6)]
Commit = Annotated[str, Spelt(r"[\w./+-]{1,255}", "a branch, a tag or a commit")]
Word = Annotated[str, Spelt(r"[a-z][a-z0-9_]{0,39}", "a word in small letters")]
Texts = str | list[str]
"""One text, as older files have it, or several."""
PipelineClass = Literal[
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "ZImagePipeline",
]


class Measure(TypedDict):
    """What was measured apart from the verdicts, and its 95 % interval."""

    mean: float
    ci95: Annotated[list[float], Length(2)]


class Side(TypedDict, total=False):
    """The base or the adapter, as it was judged: metrics in percent (`hub.card.DEFINED`) and what is behind
    them. Older files have the half-width of an interval."""

    UA: Percent
    IRA: Percent
    CRA: Percent
    NRA: Percent
    CRA_retained: Percent
    CRA_forgotten: Percent
    UA_synonyms: Percent
    UA_categories: Percent
    UA_pairs: Percent
    other_of_two: Percent
    IRA_told: Percent
    IRA_untold: Percent
    ci95: dict[str, Interval | Percent | None]
    images: dict[str, Count]
    per_class: dict[str, dict[str, Percent]]
    detections: dict[str, Count]
    measures: dict[str, Measure]
    changed_images: Percent
    without_seed_images: dict[str, Any]


class Weighted(Side):
    """The adapter at one of several weights."""

    scale: Weight


class Shown(TypedDict):
    """An image of the evaluation that the report shows."""

    prompt: str
    index: Index
    seed: Annotated[int, Range(-(2**63), 2**64)]
    forget: bool


class Prompts(TypedDict):
    """How many were judged."""

    forget: Count
    retain: Count


class Training(TypedDict, total=False):
    """What it took to make the adapter."""

    iterations: Count
    images: Count
    unet_samples: Count
    seconds: Amount
    peak_memory_mb: Amount
    stopped_by: str
    brakes: Count
    first_ratio_deviation: float
    last_iteration: dict[str, float | None]


Return = TypedDict("Return", {"return": Percent, "ci95": Interval, "images": NotRequired[Count]})
"""How often the judge saw the concept."""


class Budget(TypedDict, total=False):
    """What an attempt cost before its first image."""

    images: Count
    steps: Count
    unet_samples: Count
    seconds: Amount


class Row(TypedDict):
    """An attempt to get the concept back."""

    name: str
    adapter: Return
    base: NotRequired[Return]
    budget: NotRequired[Budget]
    prompts: NotRequired[list[str]]
    facts: NotRequired[dict[str, float | str]]


class Probe(TypedDict):
    """Attempts of one kind."""

    tries: NotRequired[str]
    rows: list[Row]


class Probes(TypedDict, total=False):
    """probes.json."""

    concept: Texts
    base_model_name_or_path: str
    judge: str
    protocol: str
    adapter_sha256: str
    num_inference_steps: Count
    guidance_scale: float | list[float]
    mixed_precision: str
    concept_images_from: str
    without_base: bool
    merged_with: str
    settings: dict[str, Any]
    versions: dict[str, str]
    probes: dict[Word, Probe]


class Results(TypedDict, total=False):
    """results.json."""

    concept: Texts
    base_model_name_or_path: str
    revision: Commit
    pipeline_class: PipelineClass
    method: str
    date: str
    command: str
    license: str
    license_name: str
    license_link: str
    base: Side
    adapter: Side
    lora_scale: Weight
    scales: list[Weighted]
    protocol: str
    seeds: list[int | str]
    judge: str
    measured_by: dict[str, str]
    images_per_side: Count
    prompts: Prompts
    changed_images: Percent
    num_inference_steps: Count
    guidance_scale: float | list[float]
    cut_prompts: dict[str, str]
    evaluation_seconds: Amount
    shown: list[Shown]
    targets: dict[str, list[str]]
    forget_prompts: Texts
    retain_prompts: Texts
    reward_model: str
    reward_model_revision: Commit
    critic_model: str
    critic_model_revision: Commit
    relative_error: float
    settings: dict[str, Any]
    versions: dict[str, str]
    training: Training
    probes: Probes


class Iteration(TypedDict):
    """A line of diagnostics.jsonl; all other keys are metrics, numbers or null."""

    iteration: Index


def read_results(directory: Path) -> dict[str, Any]:
    """`Results` of a directory; empty if there are none.

    Raises:
        ValueError: the file is not as this project writes it.
    """
    return _read(directory / RESULTS_NAME, Results)


def read_probes(directory: Path) -> dict[str, Any]:
    """`Probes` of a directory; empty if there are none.

    Raises:
        ValueError: the file is not as this project writes it.
    """
    return _read(directory / PROBES_NAME, Probes)


def read_diagnostics(directory: Path) -> list[dict[str, Any]]:
    """The metrics of each iteration, in order; empty if there are none. Lines that a kill has cut off, or
    that a run in progress is writing, are left out.

    Raises:
        ValueError: a line is not as this project writes it.
    """
    path = directory / DIAGNOSTICS_NAME
    content = read_bytes(path, LONGEST_DIAGNOSTICS) or b""
    lines = [
        parse_line(line, f"{path}, line {number},")
        for number, line in enumerate(content.split(b"\n"), start=1)
    ]
    return [line for line in lines if line is not None]


def parse_line(line: str | bytes, place: str = DIAGNOSTICS_NAME) -> dict[str, Any] | None:
    """A line of diagnostics.jsonl; None if it is no JSON, as one that was cut off.

    Args:
        place: what holds it, for the error.

    Raises:
        ValueError: it is not as this project writes it.
    """
    try:
        found = parse_json(line, place)
    except NotJson:
        return None
    check(found, Iteration, place)
    check(found, dict[str, float | None], place)
    return cast(dict[str, Any], found)


def read_file(path: Path) -> dict[str, Any]:
    """A file of JSON: one that is called results.json or probes.json has their type.

    Raises:
        ValueError: there is none, or it is not as this project writes it.
    """
    wanted = {RESULTS_NAME: Results, PROBES_NAME: Probes}.get(path.name, dict[str, Any])
    if not path.is_file():
        raise ValueError(f"There is no {path}.")
    return _read(path, wanted)


def check(value: Any, wanted: Any, place: str) -> None:
    """Compare with one of the types above.

    Args:
        place: what holds the value, for the error.

    Raises:
        ValueError: it is of another type.
    """
    try:
        check_type(value, wanted)
    except Misfit as error:
        raise ValueError(
            f"{place} is not as this project writes it: {error}; correct it, or make it anew."
        ) from error


def listed(value: object) -> list[str]:
    """One value, several or none, as a list of texts."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def interval(side: Mapping[str, Any], name: str) -> Sequence[float] | None:
    """The 95 % interval [low, high] of a metric; None if there is none, or only the half-width of older
    results."""
    bounds = (side.get("ci95") or {}).get(name)
    return bounds if isinstance(bounds, list | tuple) else None


def _read(path: Path, wanted: Any) -> dict[str, Any]:
    found = read_json(path)
    if found is None and not path.is_file():
        return {}
    check(found, wanted, str(path))
    return cast(dict[str, Any], found)
