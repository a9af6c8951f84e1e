"""Specs and prompts in files: prompt lists, our own YAML, and the prompt files of LECO."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

from common.texts import is_seen, lines_of, load_yaml, read_text
from reward.concept.spec import ConceptSpec, SpecError, check_spec, clean_concepts
from reward.concept.vocabulary import KINDS
from reward.concept.words import nearest_without

FIELDS = {"concepts", "kinds", "forget", "anchors", "retain"}


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a text file: one a line, `#` starts a comment line, duplicates dropped.

    Raises:
        ValueError: the file cannot be read as text or holds no prompt.
    """
    # A byte-order mark stands within a text where files were joined.
    lines = [line.replace("\ufeff", "").strip() for line in lines_of(read_text(path, "prompt file"))]
    prompts = list(dict.fromkeys(line for line in lines if is_seen(line) and not line.startswith("#")))
    if not prompts:
        raise SpecError(f"The prompt file {path} holds no prompt (one a line, # starts a comment).")
    return prompts


def spec_to_yaml(spec: ConceptSpec) -> str:
    """The spec as YAML that `read_spec` reads back, for a person to edit."""
    content = {
        "concepts": spec.concepts,
        "kinds": spec.kinds,
        "forget": [
            {"prompt": p, "anchors": a} for p, a in zip(spec.forget_prompts, spec.anchors, strict=True)
        ],
        "retain": spec.retain_prompts,
    }
    notes = [
        f'# Too near to "{concept}" to be told from it, so neither erased nor retained: {", ".join(texts[:10])}{", ..." if len(texts) > 10 else ""}'
        for concept, texts in spec.confusable.items()
    ]
    notes += [
        f'# No known prompt names "{concept}"; it is asked for in general wordings.'
        for concept in spec.unnamed
    ]
    # Comments end with the line, whatever a name holds.
    notes = [" ".join(note.split()) for note in notes]
    return "\n".join(
        [
            *notes,
            yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=150, default_flow_style=None),
        ]
    )


def shortened(value: Any) -> str:
    """As Python writes it, on one line and not for ever: YAML's aliases can make a value grow beyond all
    memory once it is written out."""
    shown = reprlib.repr(value)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def read_spec(path: str | Path) -> ConceptSpec:
    """A spec from a YAML file: ours, as `python -m reward.concept` prints it, or a prompt file of LECO.

    Ours is a mapping. `concepts` and `retain` are lists of texts; `forget` is a list of texts or of mappings
    with `prompt` and `anchors`; `anchors`, a list of texts, serves the forget prompts that bring none, and
    without it they are the retain prompts with the most words in common. `kinds` may be left out.

    Raises:
        ValueError: the file cannot be read, is no YAML (with line and column), lacks a field or contradicts
            itself.
    """
    text = read_text(path, "spec")
    try:
        content = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"The spec {path} is not valid YAML: {place}{error.problem}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"The spec {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    try:
        return check_spec(_from_leco(content) if isinstance(content, list) else _from_mapping(content))
    except SpecError as error:
        raise SpecError(f"The spec {path}: {error}") from error


def _from_mapping(content: Any) -> ConceptSpec:
    if not isinstance(content, dict):
        raise SpecError("it must be a mapping with `concepts`, `forget` and `retain`.")
    unknown = [shortened(key) for key in content if key not in FIELDS]
    if unknown:
        raise SpecError(f"it does not know the field {unknown[0]}; fields are {', '.join(sorted(FIELDS))}.")
    concepts = clean_concepts(_texts(content, "concepts"))
    retain = _texts(content, "retain")
    shared = _texts(content, "anchors") if "anchors" in content else None
    forget: list[str] = []
    given: list[list[str] | None] = []
    for entry in _list(content, "forget"):
        named = entry if isinstance(entry, dict) else {"prompt": entry}
        if (
            set(named) - {"prompt", "anchors"}
            or not isinstance(named.get("prompt"), str)
            or not named["prompt"].strip()
        ):
            raise SpecError(
                f"an entry of `forget` must be a prompt, or a mapping with `prompt` and `anchors`, not {shortened(entry)}."
            )
        forget.append(named["prompt"].strip())
        given.append(_texts(named, "anchors") if "anchors" in named else shared)
    corpus = forget + retain
    anchors = [
        row if row else nearest_without(p, concepts, retain, corpus)
        for p, row in zip(forget, given, strict=True)
    ]
    kinds = _texts(content, "kinds") if "kinds" in content else []
    wrong = next((kind for kind in kinds if kind not in KINDS), None)
    if wrong is not None:
        raise SpecError(f"{wrong!r} is no kind; kinds are {', '.join(KINDS)}.")
    if kinds and len(kinds) != len(concepts):
        raise SpecError(f"`kinds` needs one kind for each of the {len(concepts)} concepts, got {len(kinds)}.")
    return ConceptSpec(concepts, forget, retain, anchors, kinds)


def _from_leco(content: list[Any]) -> ConceptSpec:
    """Entries with `target`, `positive` (what is erased; default: the target), `neutral` and
    `unconditional` (what is left), `action: erase`."""
    targets: dict[str, list[str]] = {}
    retain: list[str] = []
    for entry in content:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("target"), str)
            or not entry["target"].strip()
        ):
            raise SpecError("an entry of a LECO file needs `target`, a text.")
        if entry.get("action", "erase") != "erase":
            raise SpecError(f"the action {shortened(entry['action'])} is not supported; only `erase` is.")
        neutral = entry.get("neutral") or entry.get("unconditional") or ""
        if not isinstance(neutral, str):
            raise SpecError(f"`neutral` must be a text, not {shortened(neutral)}.")
        targets.setdefault(entry["target"].strip(), []).append(neutral.strip() or "a picture")
        retain.append(neutral.strip() or "a picture")
    named = [entry.get("positive") or entry["target"] for entry in content]
    wrong = [name for name in named if not isinstance(name, str)]
    if wrong:
        raise SpecError(f"`positive` must be a text, not {shortened(wrong[0])}.")
    concepts = clean_concepts(named)
    return ConceptSpec(
        list(dict.fromkeys(concepts)), list(targets), list(dict.fromkeys(retain)), list(targets.values())
    )


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list) or not value:
        raise SpecError(f"`{name}` must be a list that is not empty.")
    return value


def _texts(content: dict[str, Any], name: str) -> list[str]:
    value = _list(content, name)
    wrong = [entry for entry in value if not isinstance(entry, str) or not entry.strip()]
    if wrong:
        raise SpecError(f"`{name}` must hold texts only, not {shortened(wrong[0])}.")
    return list(dict.fromkeys(" ".join(entry.split()) for entry in value)) if name != "kinds" else value
