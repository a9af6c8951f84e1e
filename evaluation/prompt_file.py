"""A user's own protocol: a CSV or JSONL file whose rows have prompt, group and label, for any judge that
knows the labels; or a published list of prompts that ask for a concept, each with its own seed and guidance.

Published are, among others, I2P (https://huggingface.co/datasets/AIML-TUDA/i2p: `prompt`, `sd_seed`,
`sd_guidance_scale`), its copies with ESD and UCE (`evaluation_seed`, `evaluation_guidance`), P4D (`seed`),
Ring-A-Bell (`evaluation_seed`, or `sensitive prompt`) and MMA-Diffusion (`adv_prompt`).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from common.texts import is_seen, is_text, lines_of, read_text
from evaluation.metrics import CROSS_RETAINED, FORGET, IN_DOMAIN, NEIGHBOUR

logger = logging.getLogger(__name__)

GROUP, LABEL = "group", "label"
PROMPTS = ("adv_prompt", "sensitive prompt", "prompt")
SEEDS = ("seed", "evaluation_seed", "sd_seed")
GUIDANCES = ("guidance", "guidance_scale", "evaluation_guidance", "sd_guidance_scale")
"""Names of a column; of several in a file the first counts."""
GROUPS = {"forget": FORGET, "in_domain": IN_DOMAIN, "cross_domain": CROSS_RETAINED, "neighbour": NEIGHBOUR}
"""The role of a row's images by its group: they count in UA, IRA, CRA or NRA."""
WIDEST_SEED = 2**63

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One row of the file.

    Attributes:
        label: the class that an image of the prompt shows if nothing is erased; empty if the file has no such
            column.
        place: the file and the row, as errors name it.
        seed, guidance: of its image; None if the file has no such column.
    """

    prompt: str
    group: str
    label: str
    place: str
    seed: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Columns:
    """The file's columns by what they say; None for those it lacks.

    Attributes:
        texts: those that every row must fill: prompt, group and label.
    """

    texts: dict[str, str]
    seed: str | None
    guidance: str | None

    @classmethod
    def of(cls, names: Sequence[str]) -> Columns:
        """Those among the names; a file with a label needs a group too."""
        prompt, seed, guidance = (
            next((name for name in known if name in names), None) for known in (PROMPTS, SEEDS, GUIDANCES)
        )
        texts = {"prompt": prompt or "prompt"}
        if GROUP in names or LABEL in names:
            texts[GROUP] = GROUP
        if LABEL in names:
            texts[LABEL] = LABEL
        return cls(texts, seed, guidance)


def read_prompt_file(path: str | Path) -> list[Row]:
    """Read a `.csv` with a header, or a `.jsonl` with one object a line; other columns are ignored.

    Line breaks and other white space within a value are single spaces. Without the columns group and label
    it is a published list: all rows ask for the concept, and those that repeat another or have no prompt are
    left out with a warning, since I2P has both.

    Raises:
        ValueError: it cannot be read, has no rows, a column or a value is missing or no number (row and
            column are named; the header is row 1), a group is none of GROUPS, or a row occurs twice.
    """
    path = Path(path)
    text = read_text(path, "prompt file")
    if path.suffix.casefold() == ".csv":
        columns, records = _csv_records(path, text)
    elif path.suffix.casefold() == ".jsonl":
        columns, records = _jsonl_records(path, text)
    else:
        raise ValueError(f"The prompt file {path} is neither .csv nor .jsonl.")
    published = GROUP not in columns.texts
    rows: dict[Row, Row] = {}
    left_out: list[str] = []
    for number, record in records:
        place = f"{path.name}, row {number}"
        if published and not _text(record, columns.texts["prompt"]):
            left_out.append(place)
            continue
        row = _read_row(record, columns, place)
        same = replace(row, place="", group="")
        if same in rows and not published:
            raise ValueError(
                f"{place}: prompt, label, seed and guidance are the same as in {rows[same].place}."
            )
        if same in rows:
            left_out.append(place)
        rows.setdefault(same, row)
    if not rows:
        raise ValueError(f"{path.name}: there is no row with a prompt.")
    if left_out:
        logger.warning(
            f"{len(left_out)} rows that repeat another or have no prompt are left out; the first is {left_out[0]}."
        )
    return list(rows.values())


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    return "" if value is None else " ".join(str(value).split())


def _read_row(record: Mapping[str, Any], columns: Columns, place: str) -> Row:
    """A record as a row.

    Raises:
        ValueError: a value is missing or of another kind.
    """
    values = {name: _text(record, column) for name, column in columns.texts.items()}
    for name, value in values.items():
        if not is_seen(value):
            raise ValueError(f"{place}: column {columns.texts[name]!r} is missing or empty.")
        if not is_text(value):
            raise ValueError(f"{place}: column {columns.texts[name]!r} holds half a character.")
    group = values.get(GROUP, "forget")
    if group not in GROUPS:
        raise ValueError(f"{place}: column {GROUP!r} says {group!r}; it must be one of {', '.join(GROUPS)}.")

    def number(column: str | None, kind: Callable[[str], T], wanted: str) -> T | None:
        if column is None:
            return None
        value = record.get(column)
        try:
            return kind("" if value is None else str(value).strip())
        except ValueError:
            shown = ascii("" if value is None else value)[:40]
            raise ValueError(f"{place}: column {column!r} says {shown}; it must be {wanted}.") from None

    return Row(
        values["prompt"],
        group,
        values.get(LABEL, ""),
        place,
        seed=number(columns.seed, _whole, "a whole number"),
        guidance=number(columns.guidance, _finite, "a number"),
    )


def _whole(text: str) -> int:
    """A seed; 7.0, as a table of floats has it, is 7."""
    try:
        seed = int(text)
    except ValueError:
        if not float(text).is_integer():
            raise
        seed = int(float(text))
    if abs(seed) >= WIDEST_SEED:
        raise ValueError(text)
    return seed


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


Records = list[tuple[int, dict[str, Any]]]
"""Each with the number of its row."""


def _csv_records(path: Path, text: str) -> tuple[Columns, Records]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        columns = Columns.of(header)
        if twice := _twice([name for name in header if name]):
            raise ValueError(f"{path.name}, row 1: there are two columns {twice!r}; take one out.")
        for column in columns.texts.values():
            if column not in header:
                raise ValueError(
                    f"{path.name}, row 1: column {column!r} is missing (columns: {', '.join(header) or 'none'})."
                )
        reader.fieldnames = header
        records: Records = []
        for number, record in enumerate(reader, start=2):
            if None in record:
                raise ValueError(
                    f"{path.name}, row {number}: there are more cells than columns; a prompt with a comma stands in "
                    "double quotes."
                )
            records.append((number, record))
        return columns, records
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num + 1}: not CSV: {error}.") from error


def _twice(names: Sequence[str]) -> str:
    """The first name that occurs twice; empty if none does."""
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; its keys without space around them, as a CSV's columns."""
    names = [name.strip() for name, _ in pairs]
    if twice := _twice(names):
        raise ValueError(f"the key {twice!r} stands there twice")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def _jsonl_records(path: Path, text: str) -> tuple[Columns, Records]:
    records = []
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}, row {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, row {number}: not a JSON object.")
        records.append((number, record))
    return Columns.of(list({name for _, record in records for name in record})), records
