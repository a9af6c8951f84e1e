"""Table and plot of a comparison, from the results.json of its runs. Pure functions but for the writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.compare.methods import BASE, OURS, TITLES
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
COLOURS = colormaps["tab20"]
"""One for each method."""
DISTANCES = ("FID",)
"""Metrics that are not in percent, and the better the lower."""
Read = Callable[[Run, str], dict[str, float]]
"""A run and one of its sides, "base" or "adapter" -> the metrics that are shown, by name."""


def domain(run: Run) -> str:
    """Whether a style or an object was erased, as the judge's classes say."""
    return next(iter(run["targets"]))


def metrics(run: Run, side: str) -> dict[str, float]:
    """UA, IRA, CRA and their mean, NRA and FID, as far as the evaluation could tell them."""
    of = run[side]
    found = {name: of[name] for name in HEADLINE if of.get(name) is not None}
    found["mean"] = fmean(found.values())
    if of.get("NRA") is not None:
        found["NRA"] = of["NRA"]
    if distance := of.get("measures", {}).get("FID"):
        found["FID"] = distance["mean"]
    return found


def table(runs: Sequence[Run], read: Read = metrics) -> str:
    """One row a method, and the base: metrics for styles and for objects, then what the adapter costs; mean
    and 95 % interval over concepts and seeds.

    The highest mean of a column in percent is bold, equals alike.
    """
    methods = [name for name in TITLES if any(run["method"] == name for run in runs)]
    header, rows = ["method"], {name: [TITLES[name]] for name in methods}
    base = [BASE]
    for d in DOMAINS:
        of = [run for run in runs if domain(run) == d]
        adapters = [
            _Found(run["method"], read(run, "adapter"), run["adapter"].get("images", {})) for run in of
        ]
        bases = [_Found(BASE, read(run, "base"), run["base"].get("images", {})) for run in of]
        for name in dict.fromkeys(name for found in adapters for name in found.metrics):
            header.append(f"{d} {name}")
            base.append(number(_summary(bases, name)["mean"]))
            for method, cell in _column(adapters, name, methods).items():
                rows[method].append(cell)
    costs = {name: title for name, title in COSTS.items() if any(name in run["training"] for run in runs)}
    header += [*costs.values(), "adapter, MB"]
    base += [MISSING] * (len(costs) + 1)
    for method in methods:
        of = [run for run in runs if run["method"] == method]
        rows[method] += [number(mean(run["training"].get(name) for run in of), 0) for name in costs]
        rows[method].append(number(mean(run["adapter_mb"] for run in of), 2))
    return markdown(header, [base, *rows.values()])


class _Found(NamedTuple):
    """One side of a run: who drew it, its metrics, and how many images are behind those that say so."""

    method: str
    metrics: Mapping[str, float]
    images: Mapping[str, int]


def _column(found: Sequence[_Found], name: str, methods: Sequence[str]) -> dict[str, str]:
    """A metric's cell for each method."""
    summaries = {method: _summary([f for f in found if f.method == method], name) for method in methods}
    means = [summary["mean"] for summary in summaries.values() if summary["mean"] is not None]
    cells = {}
    for method, summary in summaries.items():
        percent = name not in DISTANCES
        best = percent and summary["mean"] is not None and number(summary["mean"]) == number(max(means))
        text = mean_interval(summary, 1 if percent else 2, least=0.0)
        cells[method] = bold(text) if best else text
    return cells


def _summary(of: Sequence[_Found], name: str) -> dict[str, Any]:
    if not of:
        return {"mean": None, "ci95": None}
    images = sum(found.images.get(name, 0) for found in of) or None
    percent = {} if name in DISTANCES else {name: images}
    return summarize([{name: found.metrics.get(name)} for found in of], percent)[name]


def plot(
    runs: Sequence[Run],
    path: Path,
    read: Read = metrics,
    *,
    forgotten: str = "UA",
    kept: Sequence[str] = ("IRA", "CRA"),
) -> None:
    """What is forgotten against the mean of what is kept, as far as it is known, for styles and for objects:
    a large point a method, a small one a run."""
    domains = [d for d in DOMAINS if any(domain(run) == d for run in runs)]
    figure = Figure(figsize=(5.5 * len(domains), 4.8), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    shown = {}
    for axes, d in zip(figure.subplots(1, len(domains), squeeze=False)[0], domains, strict=True):
        for k, method in enumerate(TITLES):
            of = [read(run, "adapter") for run in runs if run["method"] == method and domain(run) == d]
            if not of:
                continue
            known = [name for name in kept if name in of[0]]
            x, y = [f[forgotten] for f in of], [fmean(f[name] for name in known) for f in of]
            axes.scatter(x, y, s=10, color=COLOURS(k), alpha=0.35, linewidths=0)
            size, marker = (150, "*") if method == OURS else (60, "o")
            shown[TITLES[method]] = axes.scatter(fmean(x), fmean(y), s=size, color=COLOURS(k), marker=marker)
            together = " + ".join(known)
            axes.set_ylabel(
                f"({together}) / {len(known)} (percent)" if len(known) > 1 else f"{together} (percent)"
            )
        axes.set(xlim=(None, 101), ylim=(None, 101))
        axes.set_title(f"{d}s", fontsize=11)
        axes.set_xlabel(f"{forgotten} (percent)")
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
