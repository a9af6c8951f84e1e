"""How much of a concept comes back with each method's adapter: `python -m evaluation.probes` on a
comparison's runs, in one table a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare.methods import BASE, NAMES
from benchmarks.compare.runs import Erasure, World
from benchmarks.jobs import Job, in_parallel, run_job
from benchmarks.report import markdown
from evaluation.probes.rows import cell
from hub.results import PROBES_NAME

Rows = Sequence[Mapping[str, Any]]
"""Of one adapter: what each attempt found with it and in the base, as probes.json has it."""


def check_probed(probe: Sequence[str], concepts: Sequence[str], name: str) -> None:
    """
    Args:
        name: of the flag that says what is erased.

    Raises:
        ValueError: something is to be probed that is not erased.
    """
    if unknown := [concept for concept in probe if concept not in concepts]:
        raise ValueError(f"--probe {unknown[0]!r} is none of --{name}: {', '.join(concepts)}.")


def probe_all(
    erasures: Sequence[Erasure], output_dir: Path, at_a_time: int, world: World
) -> dict[str, dict[str, Rows]]:
    """By concept and method, what every probe finds. What has its probes.json, or is recorded, is not run
    again; the first method of a concept tries the base too.

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    first = {erasure.concept: erasure for erasure in reversed(erasures)}

    def rows(erasure: Erasure) -> Rows:
        def probed() -> dict[str, Rows]:
            return {"rows": probe(erasure, output_dir, world, with_base=erasure == first[erasure.concept])}

        return (world.records.of(f"probes-{erasure.name}", probed) if world.records else probed())["rows"]

    found: dict[str, dict[str, Rows]] = {}
    for erasure, of in zip(erasures, in_parallel(rows, erasures, at_a_time, "probing"), strict=True):
        found.setdefault(erasure.concept, {})[erasure.method] = of
    return found


def probe(erasure: Erasure, output_dir: Path, world: World, with_base: bool) -> Rows:
    """What every probe finds with one adapter, and with the base."""
    path = erasure.directory(output_dir)
    alone = [] if with_base else ["--without_base"]
    given = ["-m", "evaluation.probes", "--adapter", str(path), *world.probe(erasure.concept), *alone]
    report = run_job(Job(given, path / "probes" / PROBES_NAME, path.with_suffix(".probes.log")))
    return [row for probe in (report.get("probes") or {}).values() for row in probe["rows"]]


def table(found: Mapping[str, Rows]) -> str:
    """Markdown of one concept: a row an attempt, a column a method, percent of the images that show the
    concept with their 95 % interval.

    The base's column is the same attempt on the base, from the first run that made it.

    Args:
        found: rows by method, each with the same attempts.
    """
    methods = [method for method in NAMES if method in found]
    rows = []
    for attempts in zip(*(found[method] for method in methods), strict=True):
        base = next((attempt["base"] for attempt in attempts if attempt.get("base")), None)
        rows.append([attempts[0]["name"], cell(base), *(cell(attempt["adapter"]) for attempt in attempts)])
    return markdown(["attempt", BASE, *(NAMES[method] for method in methods)], rows)


def sections(found: Mapping[str, Mapping[str, Rows]]) -> str:
    """A table for each concept."""
    return "".join(f"\n\n## Probes: {concept}\n\n{table(rows)}" for concept, rows in found.items())
