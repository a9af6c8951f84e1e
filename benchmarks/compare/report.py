"""Table and figure of a comparison, from the results.json of its runs. Pure functions but for the writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.compare.methods import BASE, NAMES, OURS
from evaluation.metrics import HEADLINE, summarize

Run = Mapping[str, Any]
"""The results of an evaluation, with `method`, `concept` (one text), `training` and `adapter_mb` added."""

DOMAINS = ("style", "object")
COSTS = {
    "seconds": "seconds",
    "peak_memory_mb": "peak memory, MB",
    "unet_samples": "UNet samples",
    "images": "images drawn",
}
"""Columns from the `training` of results.json."""
PERCENT = (*HEADLINE, "NRA", "mean")


def domain(run: Run) -> str:
    """Whether a style or an object was erased, as the judge's classes say."""
    return next(iter(run["targets"]))


def figures(run: Run, side: str = "adapter") -> dict[str, float]:
    """UA, IRA, CRA and their mean, NRA and FID, as far as the evaluation could tell them."""
    of = run[side]
    found = {name: of[name] for name in HEADLINE if of.get(name) is not None}
    found["mean"] = fmean(found.values())
    distance = of.get("measures", {}).get("FID")
    return (
        found
        | ({"NRA": of["NRA"]} if of.get("NRA") is not None else {})
        | ({"FID": distance["mean"]} if distance else {})
    )


def table(runs: Sequence[Run]) -> str:
    """One row a method, and the base: figures for styles and for objects, then what the adapter costs; mean
    and 95 % interval over concepts and seeds.

    The highest mean of a column in percent is bold, equals alike.
    """
    methods = [name for name in NAMES if any(run["method"] == name for run in runs)]
    per_domain = {d: of for d in DOMAINS if (of := [run for run in runs if domain(run) == d])}
    columns = {
        d: list(dict.fromkeys(name for run in of for name in figures(run))) for d, of in per_domain.items()
    }
    costs = {name: title for name, title in COSTS.items() if any(name in run["training"] for run in runs)}
    cells: dict[str, list[str]] = {method: [] for method in methods}
    base: list[str] = []
    for d in per_domain:
        for name in columns[d]:
            found = {
                method: _summary([run for run in per_domain[d] if run["method"] == method], name)
                for method in methods
            }
            means = [s["mean"] for s in found.values() if s["mean"] is not None]
            for method, s in found.items():
                best = name in PERCENT and s["mean"] is not None and f"{s['mean']:.1f}" == f"{max(means):.1f}"
                text = _cell(s, 2 if name == "FID" else 1)
                cells[method].append(f"**{text}**" if best else text)
            base.append(_cell(_summary(per_domain[d], name, "base"), 1, interval=False))
    for method in methods:
        of = [run for run in runs if run["method"] == method]
        cells[method] += [_mean([run["training"].get(name) for run in of]) for name in costs] + [
            _mean([run["adapter_mb"] for run in of], digits=2)
        ]
    base += ["–"] * (len(costs) + 1)
    header = [f"{d} {name}" for d, names in columns.items() for name in names] + [
        *costs.values(),
        "adapter, MB",
    ]
    lines = [
        f"| method | {' | '.join(header)} |",
        "|---|" + "---|" * len(header),
        f"| {BASE} | {' | '.join(base)} |",
    ]
    return "\n".join([*lines, *(f"| {NAMES[method]} | {' | '.join(row)} |" for method, row in cells.items())])


def plot(runs: Sequence[Run], path: Path) -> None:
    """UA against (IRA + CRA) / 2, or against IRA where the judge knows one domain, for styles and for
    objects: a large point a method, a small one a run."""
    domains = [d for d in DOMAINS if any(domain(run) == d for run in runs)]
    figure = Figure(figsize=(5.5 * len(domains), 4.8), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    shown = {}
    for axes, d in zip(figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True):
        for k, method in enumerate(NAMES):
            of = [figures(run) for run in runs if run["method"] == method and domain(run) == d]
            if not of:
                continue
            kept = [name for name in ("IRA", "CRA") if name in of[0]]
            x, y = [f["UA"] for f in of], [fmean(f[name] for name in kept) for f in of]
            axes.scatter(x, y, s=10, color=f"C{k}", alpha=0.35, linewidths=0)
            size, marker = (150, "*") if method == OURS else (60, "o")
            shown[NAMES[method]] = axes.scatter(fmean(x), fmean(y), s=size, color=f"C{k}", marker=marker)
            axes.set_ylabel("(IRA + CRA) / 2 (percent)" if len(kept) == 2 else f"{kept[0]} (percent)")
        axes.set(xlim=(None, 101), ylim=(None, 101))
        axes.set_title(f"{d}s", fontsize=11)
        axes.set_xlabel("UA (percent)")
        axes.grid(alpha=0.3)
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncol=min(4, len(shown)),
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path)


def _summary(of: Sequence[Run], name: str, side: str = "adapter") -> dict[str, Any]:
    if not of:
        return {"mean": None, "ci95": None}
    images = sum(run[side].get("images", {}).get(name, 0) for run in of) or None
    return summarize(
        [{name: figures(run, side).get(name)} for run in of], {name: images} if name in PERCENT else None
    )[name]


def _cell(summary: Mapping[str, Any], digits: int, interval: bool = True) -> str:
    if summary["mean"] is None:
        return "–"
    low_high = summary["ci95"]
    return f"{summary['mean']:.{digits}f}" + (
        f" [{max(0.0, low_high[0]):.{digits}f}, {low_high[1]:.{digits}f}]" if interval and low_high else ""
    )


def _mean(values: Sequence[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.{digits}f}" if known else "–"
