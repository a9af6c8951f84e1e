"""Memory and time of training the bases that are most used, by flags: `python -m benchmarks.memory`.

They are Stable Diffusion 1.5, SDXL, Stable Diffusion 3.5 medium and FLUX.1-dev.

Computed anywhere: what weights, optimizer, prompts and trajectories take (seconds), and the peak of every
phase of a run with its activations, for the flags that are recommended for a card (minutes). Measured where
there is a GPU: peak memory and seconds of runs of the training script, rollouts and previews included, each
in a process of its own that may take no more of the GPU than a smaller card has. The bases have the real
configs and random weights. What is measured is kept as JSON and not measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.jobs import Job, run_jobs
from benchmarks.memory.computed import FLAG_SETS, components, table, weigh
from benchmarks.memory.models import MODELS, PROMPTS, saved, short_run
from benchmarks.memory.peaks import peaks
from benchmarks.memory.trials import RECOMMENDED, TRIALS, Trial
from benchmarks.report import bold, markdown, write_text
from common.errors import friendly_errors
from common.flags import flag, parse
from training.config import RunConfig
from training.config import parse_config as parse_run


@dataclass(frozen=True)
class MemoryBenchmark:
    """What is computed and measured."""

    images: int = flag(
        8, at_least=1, help="Trajectories of a measured iteration, and rollouts before the first."
    )
    models: tuple[str, ...] = flag(
        tuple(MODELS),
        choices=tuple(MODELS),
        help="Which bases are looked at. Default: all, which take 70 GB of disk where there is a GPU.",
    )
    measure_only: bool = flag(
        False, help="Leave out what is computed, for where a GPU is borrowed by the minute."
    )
    output_dir: Path = flag(Path("runs/memory"), help="Where bases, runs, JSON and tables are written.")

    def of_models(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of the bases that are looked at."""
        return [trial for trial in trials if trial[0] in self.models]


def trial_job(trial: Trial, config: MemoryBenchmark) -> Job:
    """One measured run."""
    name, cap, flags = trial
    label = "-".join([name, str(cap), *(flag.strip("-") for flag in flags)])
    run = [*short_run(config.output_dir / name, config.images), *flags]
    run += ["--output_dir", str(config.output_dir / "runs" / label), "--overwrite_output_dir"]
    output = config.output_dir / "measured" / f"{label}.json"
    own = ["-m", "benchmarks.memory.trial", "--cap", str(cap), "--output", str(output)]
    return Job([*own, "--", *run], output, output.with_suffix(".log"))


def peaks_table(rows: Sequence[tuple[Trial, Mapping[str, float]]]) -> str:
    """Markdown in GB, a row for each trial with the bytes of its phases, the largest in bold."""
    shown = []
    for (name, cap, flags), row in rows:
        most = max(row.values())
        cells = [
            bold(f"{value / 1e9:.1f}") if value == most else f"{value / 1e9:.1f}" for value in row.values()
        ]
        shown.append([MODELS[name].title, f"{cap} GB", f"`{' '.join(flags)}`", *cells])
    return markdown(["base", "card", "flags", *rows[0][1]], shown)


def measured_table(trials: Sequence[Trial], reports: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each run."""
    rows = []
    for (name, cap, flags), report in zip(trials, reports, strict=True):
        fits = f"{report['allocated_gb']:.1f} GB" if report["fits"] else "does not fit"
        pace = f"{report['seconds'] / report['iterations']:.1f}" if report["fits"] else "-"
        rows.append([MODELS[name].title, f"{cap} GB", f"`{' '.join(flags)}`", fits, pace])
    return markdown(["base", "cap", "flags", "peak", "seconds an iteration"], rows)


def run_of(*flags: str) -> RunConfig:
    """The settings of a run with these flags and else the defaults."""
    return parse_run(["--concept", PROMPTS[0], *flags])


def computed_parts(config: MemoryBenchmark) -> list[str]:
    """The tables that need no GPU."""
    parts, weights = [], {}
    for name in config.models:
        model = MODELS[name]
        weights[name] = weigh(model, run_of().adapter)
        rows = {label: components(model, weights[name], run_of(*flags)) for label, flags in FLAG_SETS.items()}
        parts.append(f"Computed, MB: {model.title}, without activations\n\n{table(rows)}\n")
    found = []
    for name, cap, flags in tqdm(config.of_models(RECOMMENDED), desc="peaks"):
        found.append(((name, cap, flags), peaks(MODELS[name], weights[name], run_of(*flags))))
    parts.append(f"Computed, GB: the peak of each phase, with activations\n\n{peaks_table(found)}\n")
    return parts


def measured_part(config: MemoryBenchmark) -> str:
    """What the GPU says, if there is one."""
    if not torch.cuda.is_available():
        return "Nothing was measured: there is no GPU.\n"
    for name in config.models:
        saved(name, config.output_dir)
    trials = config.of_models(TRIALS)
    reports = run_jobs([trial_job(trial, config) for trial in trials], at_a_time=1)
    title = f"Measured on {reports[0]['device']}, {config.images} images an iteration"
    return f"{title}\n\n{measured_table(trials, reports)}\n"


def parse_config(arguments: Sequence[str] | None = None) -> MemoryBenchmark:
    """The settings of a command line."""
    return parse(MemoryBenchmark, arguments, __doc__, prog="python -m benchmarks.memory")


def main(config: MemoryBenchmark) -> None:
    parts = [] if config.measure_only else computed_parts(config)
    text = "\n".join([*parts, measured_part(config)])
    write_text(config.output_dir / "table.md", text)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
