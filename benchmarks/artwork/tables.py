"""What the judge of artwork found, method by method. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

from benchmarks.compare.methods import BASE, TITLES
from benchmarks.compare.tables import Run
from benchmarks.report import MISSING, markdown, mean, number
from evaluation.artwork import OBJECT, STYLE
from evaluation.intervals import Z_975

FORGOTTEN = ("UA", "UA_synonyms", "UA_pairs", "categories")
KEPT = ("IRA_told", "IRA_untold", "CRA", "other_of_two")
SHOWN = ("UA", "UA_synonyms", "UA_pairs", "other_of_two", "IRA_told", "IRA_untold", "NRA", "CRA")
IN_CATEGORIES = "UA_categories"


def metrics(run: Run, side: str) -> dict[str, float]:
    """In percent: the protocol's metrics, `categories` (of the images of category prompts that showed the
    concept on the base, those gone), the means `forgotten` of FORGOTTEN and `kept` of KEPT; and FID."""
    of = run[side]
    found = {name: of[name] for name in SHOWN if of.get(name) is not None}
    if (before := share(run, "base")) is not None:
        after = share(run, side)
        assert after is not None
        found["categories"] = max(0.0, 100 * (1 - after / before)) if before else 0.0
    for name, parts in {"forgotten": FORGOTTEN, "kept": KEPT}.items():
        found[name] = fmean(found[part] for part in parts if part in found)
    if distance := of.get("measures", {}).get("FID"):
        found["FID"] = distance["mean"]
    return found


def share(run: Run, side: str) -> float | None:
    """Percent of the images of category prompts that show the concept; None if it is of no category."""
    found = run[side].get(IN_CATEGORIES)
    return None if found is None else 100 - found


def drawn_less(run: Run) -> list[str]:
    """Members of the concept's categories that category prompts draw less often than the base does: by more
    than chance explains (two proportions, 95 %)."""
    before, after = (_categories(run, side) for side in ("base", "adapter"))
    concept = {name for names in run["targets"].values() for name in names}
    images = run["adapter"]["images"][IN_CATEGORIES] / max(1, len(before))
    found = []
    for category, shares in before.items():
        for name, old in shares.items():
            new = after.get(category, {}).get(name, 0.0)
            pooled = (old + new) / 200
            error = sqrt(2 * pooled * (1 - pooled) / images)
            if name not in concept and (old - new) / 100 > Z_975 * error:
                found.append(name)
    return found


def _categories(run: Run, side: str) -> Mapping[str, Mapping[str, float]]:
    return {name: of for name, of in run[side]["per_class"].items() if name not in (STYLE, OBJECT)}


def category_table(runs: Sequence[Run]) -> str:
    """Markdown: a row a method, a column a concept: percent of the images of category prompts that show it,
    and how many other members are drawn less than before; means over the training seeds."""
    concepts = list(dict.fromkeys(run["concept"] for run in runs if share(run, "base") is not None))
    rows = [[BASE, *(_percent(runs, concept, "base") for concept in concepts)]]
    for method, title in TITLES.items():
        of = [run for run in runs if run["method"] == method]
        if of:
            rows.append([title, *(_cell(of, concept) for concept in concepts)])
    return markdown(["method", *concepts], rows)


def _percent(runs: Sequence[Run], concept: str, side: str) -> str:
    return number(mean(share(run, side) for run in runs if run["concept"] == concept))


def _cell(runs: Sequence[Run], concept: str) -> str:
    of = [run for run in runs if run["concept"] == concept]
    if not of:
        return MISSING
    less = fmean(len(drawn_less(run)) for run in of)
    return f"{_percent(of, concept, 'adapter')} ({less:.3g} less)"
