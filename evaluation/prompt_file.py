"""A user's own protocol: a CSV or JSONL file whose rows have prompt, group and label, for any judge that
knows the labels."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.texts import lines_of, read_text
from evaluation.examination import Examination
from evaluation.judge import ImageJudge, match_class
from evaluation.metrics import CROSS_RETAINED, FORGET, IN_DOMAIN, NEIGHBOUR, Cell

COLUMNS = ("prompt", "group", "label")
GROUPS = {"forget": FORGET, "in_domain": IN_DOMAIN, "cross_domain": CROSS_RETAINED, "neighbour": NEIGHBOUR}
"""The role of a row's images by its group: they count in UA, IRA, CRA or NRA."""
MOST_LISTED = 20


@dataclass(frozen=True)
class Row:
    """One row of the file.

    Attributes:
        label: the class that an image of the prompt shows if nothing is erased.
        place: the file and the row, as errors name it.
    """

    prompt: str
    group: str
    label: str
    place: str


def read_prompt_file(path: str | Path) -> list[Row]:
    """Read a `.csv` with a header, or a `.jsonl` with one object a line; other columns are ignored.

    Line breaks and other white space within a value are single spaces.

    Raises:
        ValueError: it cannot be read, a column or a value is missing (row and column are named; the header is
            row 1), a group is none of GROUPS, a row occurs twice, or no row asks for the concept.
    """
    path = Path(path)
    text = read_text(path, "prompt file")
    if path.suffix.casefold() == ".csv":
        records = _csv_records(path, text)
    elif path.suffix.casefold() == ".jsonl":
        records = _jsonl_records(path, text)
    else:
        raise ValueError(f"The prompt file {path} is neither .csv nor .jsonl.")
    rows: dict[tuple[str, str], Row] = {}
    for number, record in records:
        place = f"{path.name}, row {number}"
        values = {column: " ".join(str(record.get(column) or "").split()) for column in COLUMNS}
        for column, value in values.items():
            if not value:
                raise ValueError(f"{place}: column {column!r} is missing or empty.")
            if not is_text(value):
                raise ValueError(f"{place}: column {column!r} holds half a character.")
        if values["group"] not in GROUPS:
            raise ValueError(
                f"{place}: column 'group' says {values['group']!r}; it must be one of {', '.join(GROUPS)}."
            )
        row = Row(**values, place=place)
        if (row.prompt, row.label) in rows:
            raise ValueError(
                f"{place}: prompt and label are the same as in {rows[row.prompt, row.label].place}."
            )
        rows[row.prompt, row.label] = row
    if not any(row.group == "forget" for row in rows.values()):
        raise ValueError(f"{path.name}: no row has the group 'forget', so there is no forgetting to judge.")
    return list(rows.values())


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can spell half of a character, which no tokenizer accepts."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class FileExamination(Examination):
    """The prompts of a file; each image is judged on its row's label.

    Raises:
        ValueError: the judge does not know a label, or has several classes of that name; the row is named.
    """

    def __init__(self, judge: ImageJudge, rows: Sequence[Row], name: str, protocol: str) -> None:
        cells: list[Cell] = []
        targets: dict[str, set[str]] = {}
        for row in rows:
            domain, label = find_class(judge, row)
            cells.append(Cell(row.prompt, {domain: label}, ((domain, GROUPS[row.group]),)))
            if row.group == "forget":
                targets.setdefault(domain, set()).add(label)
        super().__init__(name, protocol, cells, targets)
        self.judge = judge

    def examine(self, images: list[Image.Image], prompt_ids: list[int]) -> list[dict[str, str]]:
        return self.judge.verdicts(images)

    def identity(self) -> str:
        return self.judge.identity()


def find_class(judge: ImageJudge, row: Row) -> tuple[str, str]:
    """The judge's class that a row's label names, with its domain.

    Raises:
        ValueError: there is none, or there are several; the row is named.
    """
    found = match_class(judge.domains, row.label)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{row.place}: the judge knows {row.label!r} in several domains: "
            f"{', '.join(domain for domain, _ in found)}."
        )
    known = [name for names in judge.domains.values() for name in names]
    known.sort(key=lambda name: -difflib.SequenceMatcher(None, row.label.casefold(), name.casefold()).ratio())
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    raise ValueError(
        f"{row.place}: the judge has no class {row.label!r}; it knows, nearest first: "
        f"{', '.join(known[:MOST_LISTED])}{more}."
    )


def _csv_records(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _rows_of(path, reader)
    except csv.Error as error:
        raise ValueError(f"{path.name}, row {reader.line_num}: not CSV: {error}.") from error


def _rows_of(path: Path, reader: csv.DictReader[str]) -> list[tuple[int, dict[str, Any]]]:
    header = [name.strip() for name in reader.fieldnames or []]
    for column in COLUMNS:
        if column not in header:
            raise ValueError(
                f"{path.name}, row 1: column {column!r} is missing (columns: {', '.join(header) or 'none'})."
            )
    reader.fieldnames = header
    return [(reader.line_num, record) for record in reader]


def _jsonl_records(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    records = []
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}, row {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, row {number}: not a JSON object.")
        records.append((number, record))
    return records
