"""Tables of what was measured on a GPU: `python -m benchmarks.gpu.tables --results DIR/results.jsonl`.

Needs no GPU. Beside the measured peaks under the caps of cards stand those that `benchmarks.memory` computes
for the same runs, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.cards import groups, run_flags
from benchmarks.gpu.results import Line, Results
from benchmarks.gpu.scale import FULL, Scale
from benchmarks.memory.computed import weigh
from benchmarks.memory.models import Model
from benchmarks.memory.peaks import peaks
from benchmarks.report import markdown, number, sections
from common.errors import friendly_errors
from common.flags import flag, parse
from evaluation.metrics import HEADLINE
from training.config import RunConfig
from training.config import parse_config as parse_run


@dataclass(frozen=True)
class TablesConfig:
    """Tables."""

    results: Path = flag(Path("runs/gpu/results.jsonl"), help="What `python -m benchmarks.gpu` wrote.")


def speeds(lines: Sequence[Line]) -> str:
    """Markdown: a row for each iteration of Stable Diffusion 1.5 that was timed."""
    rows = []
    for line in lines:
        settings, found = line["settings"], line["figures"]
        flags = " ".join([*settings["flags"], settings.get("mode", "")]).strip()
        shares = [f"{100 * found[name]:.0f} %" for name in ("rollout_share", "update_share", "overhead")]
        cells = [str(settings["batch"]), str(settings["steps"]), f"`{flags}`", f"{found['seconds']:.2f}"]
        rows.append([*cells, number(found.get("allocated_gb")), *shares])
    header = ["batch", "steps", "flags", "seconds an iteration", "peak, GB"]
    return markdown([*header, "of the matrix peak, rollout", "update", "overhead"], rows)


def cards(lines: Sequence[Line], scale: Scale) -> str:
    """Markdown: a row for each run under a cap, with the peak that is computed for the same run."""
    rows = []
    for line in lines:
        settings, found = line["settings"], line["figures"]
        model, fits = scale.models[settings["base"]], found["fits"]
        computed = computed_peak(model, parse_run(run_flags(Path("base"), settings)))
        pace = found["seconds"] / found["iterations"] if fits else None
        peak = number(found.get("allocated_gb")) if fits else "does not fit"
        cells = [model.title, f"{settings['cap_gb']} GB", f"`{' '.join(settings['flags'])}`"]
        rows.append([*cells, peak, number(computed / 1e9), number(pace, 2)])
    return markdown(["base", "card", "flags", "peak, GB", "computed", "seconds an iteration"], rows)


def computed_peak(model: Model, config: RunConfig) -> float:
    """Bytes at the worst moment of a run."""
    return max(peaks(model, weigh(model, config.adapter), config).values())


def demos(lines: Sequence[Line]) -> str:
    """Markdown: base and adapter of the demo, then how far its first iterations are from a CPU's."""
    parts = []
    for line in lines:
        found = line["figures"]
        if "iterations" in found:
            apart = f"largest weight {found['weight']:.3g}, largest deviation {found['deviation']:.2g}"
            parts.append(f"After {len(found['iterations'])} iterations here and on a CPU: {apart}.")
            continue
        judged = [side for side in ("base", "adapter") if side in found]
        rows = [[side, *(number(found[side][name]) for name in HEADLINE)] for side in judged]
        training = found["training"]
        parts.append(
            f"{markdown(['', *HEADLINE], rows)}\n\n{training['iterations']} iterations in "
            f"{training['seconds']:.0f} seconds; the first ratio deviates by "
            f"{training['first_ratio_deviation']:g} from 1."
        )
    return "\n\n".join(parts)


def tests(lines: Sequence[Line]) -> str:
    """Markdown: outcomes of the tests."""
    rows = []
    for line in lines:
        found = line["figures"]
        counts = [str(found.get(outcome, 0)) for outcome in ("passed", "skipped")]
        rows.append([f"`{line['settings']['tests']}`", *counts, " ".join(found["failed"]) or "none"])
    return markdown(["tests", "passed", "skipped", "failed"], rows)


def paces(lines: Sequence[Line]) -> str:
    """Markdown: a row for each trainer."""
    rows = [
        [line["settings"]["trainer"], *(f"{line['figures'][part]:.1f}" for part in ("rollout", "update"))]
        for line in lines
    ]
    return markdown(["trainer", "images a second, rollout", "update"], rows)


def updates(lines: Sequence[Line]) -> str:
    """Markdown: the kernels of an update, and how busy the device was."""
    parts = []
    for line in lines:
        found = line["figures"]
        rows = [
            [
                f"`{one['name']}`",
                str(one["calls"]),
                f"{1e3 * one['seconds']:.2f}",
                f"{100 * one['share']:.1f} %",
            ]
            for one in found["kernels"]
        ]
        parts.append(
            f"{markdown(['kernel', 'calls', 'milliseconds', 'share'], rows)}\n\nBusy "
            f"{100 * found['busy']:.0f} % of {found['seconds']:.3f} seconds; {found['gaps']} gaps, the longest "
            f"{1e3 * found['longest_gap']:.2f} milliseconds."
        )
    return "\n\n".join(parts)


def failures(lines: Sequence[Line]) -> str:
    """Markdown: a row for each measurement that failed, or stage that was ended."""
    rows = [[line["stage"], f"`{line['settings']}`", line["failed"]] for line in lines]
    return markdown(["stage", "settings", "why"], rows)


def tables(lines: Sequence[Line], scale: Scale = FULL) -> str:
    """Markdown: everything that was measured, under its card and its label.

    Args:
        scale: of the measurements.
    """
    made: dict[str, str] = {}
    kinds = {
        "The demo": (demos, {"demo"}),
        "Tests": (tests, {"tests"}),
        "Speed": (speeds, {"speed", "compile", "graphs"}),
        "Cards": (lambda of: cards(of, scale), set(groups())),
        "Beside TRL": (paces, {"peer"}),
        "One update": (updates, {"update"}),
    }
    measured = [line for line in lines if "figures" in line]
    for card, label in dict.fromkeys((line["card"], line["label"]) for line in measured):
        for title, (table, stages) in kinds.items():
            of = [line for line in measured if line["stage"] in stages]
            of = [line for line in of if (line["card"], line["label"]) == (card, label)]
            if of:
                made[", ".join(filter(None, [title, card, label]))] = table(of)
    if failed := [line for line in lines if "failed" in line]:
        made["Not measured"] = failures(failed)
    return sections(made)


def main(config: TablesConfig) -> None:
    print(tables(Results(config.results).lines()))


if __name__ == "__main__":
    with friendly_errors():
        main(parse(TablesConfig, None, __doc__, prog="python -m benchmarks.gpu.tables"))
