"""Table and plot of a comparison, from the results.json of its runs. Pure functions but for the writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.compare.methods import BASE, NAMES, OURS
from benchmarks.report import MISSING, bold, markdown, mean, mean_interval, number
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
COLOURS = (*(f"C{k}" for k in range(10)), "black")
"""Of the methods in the plot, in their order; matplotlib has ten."""


def domain(run: Run) -> str:
    """Whether a style or an object was erased, as the judge's classes say."""
    return next(iter(run["targets"]))


def metrics(run: Run, side: str = "adapter") -> dict[str, float]:
    """UA, IRA, CRA and their mean, NRA and FID, as far as the evaluation could tell them."""
    of = run[side]
    found = {name: of[name] for name in HEADLINE if of.get(name) is not None}
    found["mean"] = fmean(found.values())
    if of.get("NRA") is not None:
        found["NRA"] = of["NRA"]
    if distance := of.get("measures", {}).get("FID"):
        found["FID"] = distance["mean"]
    return found


def table(runs: Sequence[Run]) -> str:
    """One row a method, and the base: metrics for styles and for objects, then what the adapter costs; mean
    and 95 % interval over concepts and seeds.

    The highest mean of a column in percent is bold, equals alike.
    """
    methods = [name for name in NAMES if any(run["method"] == name for run in runs)]
    header, rows = ["method"], {name: [NAMES[name]] for name in methods}
    base = [BASE]
    for d in DOMAINS:
        of = [run for run in runs if domain(run) == d]
        for name in dict.fromkeys(name for run in of for name in metrics(run)):
            header.append(f"{d} {name}")
            base.append(number(_summary(of, name, "base")["mean"]))
            for method, cell in _column(of, name, methods).items():
                rows[method].append(cell)
    costs = {name: title for name, title in COSTS.items() if any(name in run["training"] for run in runs)}
    header += [*costs.values(), "adapter, MB"]
    base += [MISSING] * (len(costs) + 1)
    for method in methods:
        of = [run for run in runs if run["method"] == method]
        rows[method] += [number(mean(run["training"].get(name) for run in of), 0) for name in costs]
        rows[method].append(number(mean(run["adapter_mb"] for run in of), 2))
    return markdown(header, [base, *rows.values()])


def _column(runs: Sequence[Run], name: str, methods: Sequence[str]) -> dict[str, str]:
    """A metric's cell for each method."""
    found = {method: _summary([r for r in runs if r["method"] == method], name) for method in methods}
    means = [summary["mean"] for summary in found.values() if summary["mean"] is not None]
    cells = {}
    for method, summary in found.items():
        best = (
            name in PERCENT and summary["mean"] is not None and number(summary["mean"]) == number(max(means))
        )
        text = mean_interval(summary, 2 if name == "FID" else 1, least=0.0)
        cells[method] = bold(text) if best else text
    return cells


def _summary(of: Sequence[Run], name: str, side: str = "adapter") -> dict[str, Any]:
    if not of:
        return {"mean": None, "ci95": None}
    images = sum(run[side].get("images", {}).get(name, 0) for run in of) or None
    rows = [{name: metrics(run, side).get(name)} for run in of]
    return summarize(rows, {name: images} if name in PERCENT else None)[name]


def plot(runs: Sequence[Run], path: Path) -> None:
    """UA against (IRA + CRA) / 2, or against IRA where the judge knows one domain, for styles and for
    objects: a large point a method, a small one a run."""
    domains = [d for d in DOMAINS if any(domain(run) == d for run in runs)]
    figure = Figure(figsize=(5.5 * len(domains), 4.8), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    shown = {}
    for axes, d in zip(figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True):
        for colour, method in zip(COLOURS, NAMES, strict=True):
            of = [metrics(run) for run in runs if run["method"] == method and domain(run) == d]
            if not of:
                continue
            kept = [name for name in ("IRA", "CRA") if name in of[0]]
            x, y = [f["UA"] for f in of], [fmean(f[name] for name in kept) for f in of]
            axes.scatter(x, y, s=10, color=colour, alpha=0.35, linewidths=0)
            size, marker = (150, "*") if method == OURS else (60, "o")
            shown[NAMES[method]] = axes.scatter(fmean(x), fmean(y), s=size, color=colour, marker=marker)
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
