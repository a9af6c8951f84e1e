"""UA, IRA, CRA and related metrics from judged images. Pure functions, no models.

Definitions after UnlearnCanvas (https://arxiv.org/abs/2402.11846), in percent:

- UA, unlearning accuracy: 100 minus the accuracy of the target domain's head on the images whose prompt names
  a target class;
- IRA, in-domain retain accuracy: accuracy of the target domain's head on the images whose prompt names any
  other class of that domain;
- CRA, cross-domain retain accuracy: accuracy of the other domains' heads over *all* images, including those
  of the target prompts (the strict reading: a cat in the erased style must still be a cat). `CRA_retained`
  and `CRA_forgotten` are the same metric over the images whose prompt names no target class, and over those
  whose prompt names one;
- NRA, neighbour retain accuracy: accuracy on what is nearest to the concept, reported separately. In a grid
  of classes these are classes of the target's domain, which count in IRA too.

Targets may lie in several domains. Then UA and IRA count every target domain by its own head, and CRA counts,
for every target domain, the heads of the others; a verdict about a class that is itself a target never counts
as retained.

Every prompt weighs the same, regardless of its number of images.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.intervals import Interval, bootstrap, proportion_interval, t_interval, wilson

HEADLINE = ("UA", "IRA", "CRA")
METRICS = (*HEADLINE, "CRA_retained", "CRA_forgotten", "NRA")

FORGET, IN_DOMAIN, NEIGHBOUR, CROSS_RETAINED, CROSS_FORGOTTEN = (
    "forget",
    "in_domain",
    "neighbour",
    "cross_retained",
    "cross_forgotten",
)
SYNONYM, CATEGORY, PAIR = "synonym", "category", "pair"
FORGETTING = frozenset({FORGET, SYNONYM, CATEGORY, PAIR})
"""Roles of the verdicts on prompts that draw the concept, by its name or without it: right is what does not
show it."""
ROLES: dict[str, set[str]] = {
    "UA": {FORGET},
    "IRA": {IN_DOMAIN},
    "CRA": {CROSS_RETAINED, CROSS_FORGOTTEN},
    "CRA_retained": {CROSS_RETAINED},
    "CRA_forgotten": {CROSS_FORGOTTEN},
    "NRA": {NEIGHBOUR},
}
"""Which verdicts a metric counts."""

Verdict = Mapping[str, str]
"""The class that a judge sees in an image, by domain."""


@dataclass(frozen=True)
class Cell:
    """A prompt, and what its images are judged on.

    Attributes:
        labels: by domain, the class that an image of the prompt shows if nothing is erased.
        asked: the domains whose verdict counts, each with its role; a verdict may have several roles.
    """

    prompt: str
    labels: Mapping[str, str]
    asked: tuple[tuple[str, str], ...]

    @property
    def forget(self) -> bool:
        """Whether the prompt asks for the concept."""
        return any(role in FORGETTING for _, role in self.asked)


@dataclass(frozen=True)
class Scores:
    """The scores behind a metric: prompts, each with its weight and the scores of its images in [0, 1]."""

    weights: list[float]
    by_prompt: list[list[float]]

    @property
    def images(self) -> int:
        return sum(map(len, self.by_prompt))

    def percent(self) -> float | None:
        """The mean; None without images."""
        if not self.by_prompt:
            return None
        means = [statistics.fmean(row) for row in self.by_prompt]
        return 100 * sum(w * mean for w, mean in zip(self.weights, means, strict=True)) / sum(self.weights)

    def interval(self) -> Interval | None:
        """The 95 % interval in percent, within [0, 100] (`evaluation.intervals`); None without images."""
        return proportion_interval(self.by_prompt, self.weights) if self.by_prompt else None


def grid(
    domains: Mapping[str, Sequence[str]],
    wording: str,
    targets: Mapping[str, Collection[str]],
    neighbours: Mapping[str, Collection[str]] | None = None,
) -> list[Cell]:
    """Every combination of the domains' classes as a cell; the last domain varies fastest.

    Args:
        wording: of a prompt, with a field for each domain.
        targets: the classes to forget, by domain.
        neighbours: classes of the targets' domains to report separately, by domain.

    Raises:
        ValueError: there is no target, or it is no class of the domains.
    """
    if not targets or not any(targets.values()):
        raise ValueError("no target class to forget")
    unknown = [domain for domain in targets if domain not in domains]
    if unknown:
        raise ValueError(
            f"the target's domain {unknown[0]!r} was not judged (judged: {', '.join(domains) or 'none'})"
        )
    rows = [dict(zip(domains, names, strict=True)) for names in itertools.product(*domains.values())]
    cells = [
        Cell(wording.format(**labels), labels, roles(labels, targets, neighbours or {})) for labels in rows
    ]
    if not any(cell.forget for cell in cells):
        listed = ", ".join(f"{d}: {name}" for d, names in targets.items() for name in sorted(names))
        raise ValueError(f"no prompt names a target class ({listed})")
    return cells


def roles(
    labels: Mapping[str, str],
    targets: Mapping[str, Collection[str]],
    neighbours: Mapping[str, Collection[str]],
) -> tuple[tuple[str, str], ...]:
    """The roles of the verdicts on an image (see the module), given the classes its prompt names by
    domain."""
    names_target = any(labels[domain] in names for domain, names in targets.items())
    asked = []
    for target_domain in targets:
        for domain, name in labels.items():
            is_target = name in targets.get(domain, ())
            if domain == target_domain:
                asked.append((domain, FORGET if is_target else IN_DOMAIN))
                if not is_target and name in neighbours.get(domain, ()):
                    asked.append((domain, NEIGHBOUR))
            elif not is_target:
                asked.append((domain, CROSS_FORGOTTEN if names_target else CROSS_RETAINED))
    return tuple(asked)


def tabulate(
    cells: Sequence[Cell],
    verdicts: Sequence[Verdict],
    prompt_ids: Sequence[int],
    roles: Mapping[str, set[str]] = ROLES,
) -> dict[str, Scores]:
    """The scores behind each metric.

    Args:
        cells: the protocol's.
        verdicts: one for each image.
        prompt_ids: for each image, the index of its cell.
        roles: which verdicts each metric counts.

    Raises:
        ValueError: no images, or verdicts and prompts differ in number.
    """
    if len(verdicts) != len(prompt_ids):
        raise ValueError(f"prompts and verdicts differ in number: {len(prompt_ids)} and {len(verdicts)}")
    if not verdicts:
        raise ValueError("no images were judged")
    found: dict[str, Scores] = {}
    for name, counted in roles.items():
        rows: dict[int, list[float]] = {}
        asked = [[domain for domain, role in cell.asked if role in counted] for cell in cells]
        for i, seen in zip(prompt_ids, verdicts, strict=True):
            if asked[i]:
                right = statistics.fmean(seen[domain] == cells[i].labels[domain] for domain in asked[i])
                rows.setdefault(i, []).append(1 - right if counted <= FORGETTING else right)
        found[name] = Scores([float(len(asked[i])) for i in rows], list(rows.values()))
    return found


def class_accuracy(
    cells: Sequence[Cell], verdicts: Sequence[Verdict], prompt_ids: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Accuracy in percent on the images of each class, by domain, in the order in which the classes first
    appear; each prompt weighs the same."""
    hits: dict[tuple[str, str], dict[int, list[bool]]] = {}
    for i, seen in zip(prompt_ids, verdicts, strict=True):
        for domain, name in cells[i].labels.items():
            hits.setdefault((domain, name), {}).setdefault(i, []).append(seen[domain] == name)
    found: dict[str, dict[str, float]] = {}
    for (domain, name), rows in hits.items():
        found.setdefault(domain, {})[name] = 100 * statistics.fmean(
            statistics.fmean(row) for row in rows.values()
        )
    return found


def mean_interval(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """For a metric that is not a proportion: the mean over prompts of the mean over images, and its bootstrap
    interval.

    Args:
        rows: for each prompt, the values of its images.
    """
    low, high = bootstrap(rows)
    return {"mean": statistics.fmean(statistics.fmean(row) for row in rows), "ci95": [low, high]}


def summarize(
    runs: Sequence[Mapping[str, float | None]], percentages: Mapping[str, int | None] | None = None
) -> dict[str, dict[str, Any]]:
    """Mean over training runs and its 95 % interval.

    Args:
        runs: for each run, metrics by name; every run has the same names.
        percentages: the metrics in [0, 100], each with the number of images of all runs behind it, if known:
            the interval is then never narrower than Wilson's for that number of images.

    Returns:
        For each name `{"mean": …, "ci95": [low, high]}`: `mean` is None if a run lacks the metric; `ci95`
        also if there is a single run and no number of images.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("no runs to summarize")
    summary: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        values = [value for run in runs if (value := run[name]) is not None]
        if len(values) < len(runs):
            summary[name] = {"mean": None, "ci95": None}
            continue
        mean, count = statistics.fmean(values), (percentages or {}).get(name)
        intervals = [t_interval(values, (0.0, 100.0)) if name in (percentages or {}) else t_interval(values)]
        if count:
            low, high = wilson(mean / 100, count)
            intervals.append((100 * low, 100 * high))
        known = [interval for interval in intervals if interval is not None]
        summary[name] = {
            "mean": mean,
            "ci95": [min(low for low, _ in known), max(high for _, high in known)] if known else None,
        }
    return summary
