"""UA, IRA and CRA from judged images, and their summary over seeds. Pure functions, no models.

Definitions after UnlearnCanvas (https://arxiv.org/abs/2402.11846), in percent:

- UA, unlearning accuracy: 100 minus the accuracy of the target domain's head on the images whose prompt names a target class;
- IRA, in-domain retain accuracy: accuracy of the target domain's head on the images whose prompt names any other class of that domain;
- CRA, cross-domain retain accuracy: accuracy of the other domains' heads over *all* images, those of the target prompts included
  (the strict reading: a cat in the erased style must still be a cat). `CRA_retained` and `CRA_forgotten` are the same figure
  over the images whose prompt names no target class, and over those whose prompt names one.

Targets may lie in several domains. Then UA and IRA count every target domain by its own head, and CRA counts, for every target domain, the
heads of the others; a verdict about a class that is itself a target never counts as retained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

HEADLINE = ("UA", "IRA", "CRA")
FIGURES = (*HEADLINE, "CRA_retained", "CRA_forgotten")

Labels = Mapping[str, Sequence[str]]
"""Class names by domain, one a judged image."""

_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def unlearning_metrics(prompted: Labels, judged: Labels, targets: Mapping[str, Collection[str]]) -> dict[str, float | None]:
    """UA, IRA, CRA, CRA_retained and CRA_forgotten in percent (see the module); None where no image can say.

    The same function over the base model's images gives the base's figures (its UA is 100 minus its own accuracy).

    Args:
        prompted: for each domain, the class each image's prompt names (N names).
        judged: for each domain, the class the judge sees in each image (N names).
        targets: the classes to forget, by domain.

    Raises:
        ValueError: no images, no targets, a target domain nobody judged, lists of different lengths, or no image of a target class.
    """
    count = _check(prompted, judged, targets)
    names_target = [any(prompted[domain][i] in targets[domain] for domain in targets) for i in range(count)]
    hits: dict[str, list[bool]] = {"UA": [], "IRA": [], "CRA_retained": [], "CRA_forgotten": []}
    for target_domain in targets:
        for domain in prompted:
            for i in range(count):
                hit = prompted[domain][i] == judged[domain][i]
                is_target = prompted[domain][i] in targets.get(domain, ())
                if domain == target_domain:
                    hits["UA" if is_target else "IRA"].append(not hit if is_target else hit)
                elif not is_target:
                    hits["CRA_forgotten" if names_target[i] else "CRA_retained"].append(hit)
    if not hits["UA"]:
        raise ValueError(f"no image's prompt names a target class ({_listed(targets)})")
    hits["CRA"] = hits["CRA_retained"] + hits["CRA_forgotten"]
    return {name: _percent(hits[name]) for name in FIGURES}


def class_accuracy(prompted: Labels, judged: Labels) -> dict[str, dict[str, float]]:
    """Accuracy in percent of each domain's head on the images of each class, in the order in which the classes first appear."""
    hits: dict[str, dict[str, list[bool]]] = {domain: {} for domain in prompted}
    for domain, names in prompted.items():
        for name, seen in zip(names, judged[domain], strict=True):
            hits[domain].setdefault(name, []).append(name == seen)
    return {domain: {name: 100 * statistics.fmean(values) for name, values in classes.items()} for domain, classes in hits.items()}


def summarize(figures: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Mean over seeds and the half-width of its 95 % t-interval.

    Args:
        figures: for each seed, figures by name; every seed has the same names.

    Returns:
        For each name `{"mean": …, "ci95": …}`: `mean` is None where a seed has no figure, `ci95` also where there is one seed only.

    Raises:
        ValueError: no seeds.
    """
    if not figures:
        raise ValueError("no seeds to summarize")
    summary: dict[str, dict[str, float | None]] = {}
    for name in figures[0]:
        values = [seed[name] for seed in figures]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            summary[name] = {"mean": None, "ci95": None}
        elif len(known) == 1:
            summary[name] = {"mean": known[0], "ci95": None}
        else:
            half_width = t_quantile(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
            summary[name] = {"mean": statistics.fmean(known), "ci95": half_width}
    return summary


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t: from a table up to 10 degrees of freedom, from the Cornish-Fisher expansion above (error < 1e-3)."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _check(prompted: Labels, judged: Labels, targets: Mapping[str, Collection[str]]) -> int:
    if not targets or not any(targets.values()):
        raise ValueError("no target class to forget")
    unknown = [domain for domain in targets if domain not in prompted or domain not in judged]
    if unknown:
        raise ValueError(f"the target's domain {unknown[0]!r} was not judged (judged: {', '.join(prompted) or 'none'})")
    lengths = {len(labels[domain]) for labels in (prompted, judged) for domain in prompted}
    if len(lengths) != 1:
        raise ValueError(f"prompts and verdicts differ in number: {sorted(lengths)}")
    count = lengths.pop()
    if count == 0:
        raise ValueError("no images were judged")
    return count


def _percent(hits: Sequence[bool]) -> float | None:
    return 100 * statistics.fmean(hits) if hits else None


def _listed(targets: Mapping[str, Collection[str]]) -> str:
    return ", ".join(f"{domain}: {name}" for domain, names in targets.items() for name in sorted(names))
