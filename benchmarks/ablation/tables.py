"""Table and plot of an ablation, from the JSON of its runs. Pure functions but for the writing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import markdown, mean_interval
from evaluation.metrics import HEADLINE, summarize

Run = Mapping[str, Any]

TARGET_UA, MARGIN, COLLAPSE = 95.0, 3.0, 5.0


def reached(run: Run) -> int | None:
    """Images drawn until UA is at the target with IRA and CRA within the margin of the base's; None if
    they never were."""
    for point in run["curve"]:
        if point["UA"] >= TARGET_UA and all(
            point[name] >= run["base"][name] - MARGIN for name in ("IRA", "CRA")
        ):
            return int(point["images"])
    return None


def collapsed(run: Run) -> bool:
    """Whether it ended with IRA or CRA further below the base than can be tolerated."""
    return any(run["curve"][-1][name] < run["base"][name] - COLLAPSE for name in ("IRA", "CRA"))


def spent(run: Run) -> float:
    """Images to the target; of a run that never got there its budget, which is the least that it can have
    needed."""
    images = reached(run)
    return float(run["curve"][-1]["images"] if images is None else images)


def best_learning_rate(runs: Sequence[Run]) -> float:
    """Of runs of one variant: the rate with the fewest images to the target, then the fewest collapses, then
    the highest reward on the way.

    UA cannot tell runs that are far from the target from one another; the reward of the forget prompts'
    images, the mean over all iterations, can.
    """
    rates = sorted({run["learning_rate"] for run in runs})

    def cost(rate: float) -> tuple[float, int, float]:
        of_rate = [run for run in runs if run["learning_rate"] == rate]
        rewards = [fmean(line["forget_reward"] for line in run["diagnostics"]) for run in of_rate]
        return fmean(map(spent, of_rate)), sum(map(collapsed, of_rate)), -fmean(rewards)

    return min(rates, key=cost)


def table(runs: Sequence[Run]) -> str:
    """One row a variant: images to the target, metrics at the end of the budget, collapses; mean and 95 %
    interval over concepts and seeds."""
    rows = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        of = [run for run in runs if run["variant"] == variant]
        found = summarize([_outcome(run) for run in of], {"UA": None})
        cells = {name: mean_interval(s, 0 if abs(s["mean"]) >= 200 else 1) for name, s in found.items()}
        got = sum(reached(run) is not None for run in of)
        least = "" if got == len(of) else "≥ "
        rates = ", ".join(f"{rate:g}" for rate in sorted({run["learning_rate"] for run in of}))
        rows.append(
            [
                variant,
                rates,
                least + cells["images"],
                f"{got} of {len(of)}",
                *(cells[name] for name in HEADLINE),
                str(sum(map(collapsed, of))),
            ]
        )
    header = ["variant", "learning rate", "images to the target", "reached", "UA", "IRA - base", "CRA - base"]
    return markdown([*header, "collapsed"], rows)


def _outcome(run: Run) -> dict[str, float]:
    """What a run came to at the end of its budget."""
    end, base = run["curve"][-1], run["base"]
    kept = {name: end[name] - base[name] for name in ("IRA", "CRA")}
    return {"images": spent(run), "UA": end["UA"]} | kept


def explained_variance(runs: Sequence[Run]) -> dict[int, float]:
    """Within prompts, on rollouts the critic has not learnt from: mean over runs and iterations, by
    timestep."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for line in run["diagnostics"]:
            for name, value in line.items():
                if name.startswith("explained_variance/t") and value is not None:
                    values.setdefault(int(name.removeprefix("explained_variance/t")), []).append(value)
    return {t: sum(v) / len(v) for t, v in sorted(values.items())}


def _reward(run: Run, iteration: int) -> float:
    return next(line["forget_reward"] for line in run["diagnostics"] if line["iteration"] == iteration)


def plot(runs: Sequence[Run], path: Path) -> None:
    """UA, IRA, CRA and reward against images; where there is a critic, its explained variance against the
    timestep. A line for each variant."""
    variants = {
        variant: [run for run in runs if run["variant"] == variant]
        for variant in dict.fromkeys(run["variant"] for run in runs)
    }
    explained = {variant: explained_variance(of) for variant, of in variants.items()}
    explained = {
        variant: of
        for variant, of in explained.items()
        if any(not math.isclose(v, 0, abs_tol=1e-9) for v in of.values())
    }
    panels = [*HEADLINE, "reward", *(["explained"] if explained else [])]
    figure = Figure(figsize=(4 * len(panels), 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = dict(zip(panels, figure.subplots(1, len(panels)), strict=True))
    for k, (variant, of) in enumerate(variants.items()):
        style = {
            "color": f"C{k % 10}",
            "linestyle": "-" if k < 10 else "--",
            "linewidth": 2.5 if variant == "default" else 1.3,
        }
        points = min(len(run["curve"]) for run in of)
        images = [of[0]["curve"][i]["images"] for i in range(points)]
        for name in HEADLINE:
            axes[name].plot(
                images,
                [fmean(run["curve"][i][name] for run in of) for i in range(points)],
                label=variant,
                **style,
            )
        rewards = [[_reward(run, point["iteration"]) for point in run["curve"][:points]] for run in of]
        axes["reward"].plot(images, [fmean(row[i] for row in rewards) for i in range(points)], **style)
        if variant in explained:
            axes["explained"].plot(list(explained[variant]), list(explained[variant].values()), **style)
    titles = {name: f"{name} (percent)" for name in HEADLINE} | {
        "reward": "reward of the forget prompts",
        "explained": "explained variance within prompts",
    }
    for name, axis in axes.items():
        axis.set_title(titles[name], fontsize=10)
        axis.set_xlabel("timestep (1000 is noise)" if name == "explained" else "images drawn", fontsize=8)
        axis.grid(alpha=0.3)
    for name in ("IRA", "CRA"):
        axes[name].set_ylim(min(90.0, axes[name].get_ylim()[0]), 100.5)
    figure.legend(
        *axes["UA"].get_legend_handles_labels(), loc="outside lower center", ncol=5, fontsize=8, frameon=False
    )
    figure.savefig(path)
