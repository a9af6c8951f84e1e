"""Memory and time of training Stable Diffusion 1.5 and SDXL, by flags: `python -m benchmarks.memory`.

Computed anywhere: what weights, optimizer, prompts and trajectories take (seconds), and the peak of every
    phase of a run with its activations, for the
flags that are recommended for a card (minutes). Measured where there is a GPU: peak memory and seconds of
runs of the training script, rollouts and previews included, each in a process of its own that may take no
more of the GPU than a smaller card has. The bases have the real configs and random weights. What is measured
is kept as JSON and not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import train_unlearn_lora as script
from benchmarks.jobs import Job, run_jobs
from benchmarks.memory.computed import FLAG_SETS, components, table, weigh
from benchmarks.memory.models import MODELS, PROMPTS, saved, short_run
from benchmarks.memory.peaks import peaks
from common.errors import friendly_errors
from common.files import write_aside

BF16 = ["--mixed_precision", "bf16"]
SPARING = ["--gradient_checkpointing", "--offload_models", "--offload_trajectories"]
FOUR_BIT = ["--load_in_4bit"]
Trial = tuple[str, int, list[str]]
RECOMMENDED: list[Trial] = [
    ("sd15", 6, [*BF16, *SPARING, "--train_batch_size", "4"]),
    ("sd15", 8, [*BF16, *SPARING, "--train_batch_size", "8"]),
    ("sd15", 12, [*BF16, "--gradient_checkpointing", "--train_batch_size", "8"]),
    ("sd15", 16, [*BF16, "--gradient_checkpointing", "--train_batch_size", "16"]),
    ("sd15", 24, [*BF16, "--train_batch_size", "8"]),
    ("sdxl", 8, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "2"]),
    ("sdxl", 12, [*BF16, *SPARING, "--train_batch_size", "2"]),
    ("sdxl", 16, [*BF16, *SPARING, "--train_batch_size", "4"]),
    ("sdxl", 24, [*BF16, "--gradient_checkpointing", "--train_batch_size", "8"]),
]
"""Base, GB of the card, and flags that leave a tenth of the peak and a GB of it to what is not computed."""
TRIALS: list[Trial] = [
    *RECOMMENDED,
    ("sd15", 8, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "8"]),
    ("sd15", 24, [*BF16, "--use_8bit_adam", "--train_batch_size", "8"]),
    ("sdxl", 12, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "4"]),
    ("sdxl", 16, [*BF16, *SPARING, "--load_in_8bit", "--train_batch_size", "4"]),
]
"""What is measured: these, and what else can be had of the flags."""


def trial_job(name: str, cap: int, flags: list[str], args: argparse.Namespace) -> Job:
    label = "-".join([name, str(cap), *(flag.strip("-") for flag in flags)])
    run = [
        *short_run(args.output_dir / name, args.images),
        *flags,
        "--output_dir",
        str(args.output_dir / "runs" / label),
        "--overwrite_output_dir",
    ]
    output = args.output_dir / "measured" / f"{label}.json"
    return Job(
        ["-m", "benchmarks.memory.trial", "--cap", str(cap), "--output", str(output), "--", *run],
        output,
        output.with_suffix(".log"),
    )


def peaks_table(rows: list[tuple[Trial, dict[str, float]]]) -> str:
    """Markdown in GB, a row for each trial with the bytes of its phases, the largest in bold."""
    lines = [
        f"| base | card | flags | {' | '.join(rows[0][1])} |",
        "|---|---|---|" + "---|" * len(rows[0][1]),
    ]
    for (name, cap, flags), row in rows:
        most = max(row.values())
        cells = [
            f"**{value / 1e9:.1f}**" if value == most else f"{value / 1e9:.1f}" for value in row.values()
        ]
        lines.append(f"| {MODELS[name].title} | {cap} GB | `{' '.join(flags)}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_table(reports: list[dict[str, Any]]) -> str:
    """Markdown: a row for each run."""
    lines = ["| base | cap | flags | peak | seconds an iteration |", "|---|---|---|---|---|"]
    for (name, cap, flags), report in zip(TRIALS, reports, strict=True):
        fits = f"{report['allocated_gb']:.1f} GB" if report["fits"] else "does not fit"
        pace = f"{report['seconds'] / report['iterations']:.1f}" if report["fits"] else "-"
        lines.append(f"| {MODELS[name].title} | {cap} GB | `{' '.join(flags)}` | {fits} | {pace} |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--images",
        type=int,
        default=8,
        help="Trajectories of a measured iteration, and rollouts before the first.",
    )
    parser.add_argument(
        "--measure_only",
        action="store_true",
        help="Leave out what is computed, for where a GPU is borrowed by the minute.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/memory"),
        help="Where bases, runs, JSON and tables are written.",
    )
    return parser.parse_args(input_args)


def computed_parts() -> list[str]:
    """The tables that need no GPU."""
    parts, weights = [], {}
    defaults = script.parse_args(["--concept", PROMPTS[0]])
    for name, model in MODELS.items():
        weights[name] = weigh(model, defaults.rank, defaults.lora_target_modules)
        rows = {
            flags: components(model, weights[name], script.parse_args(["--concept", PROMPTS[0], *line]))
            for flags, line in FLAG_SETS.items()
        }
        parts.append(f"Computed, MB: {model.title}, without activations\n\n{table(rows)}\n")
    found = []
    for name, cap, flags in tqdm(RECOMMENDED, desc="peaks"):
        found.append(
            (
                (name, cap, flags),
                peaks(MODELS[name], weights[name], script.parse_args(["--concept", PROMPTS[0], *flags])),
            )
        )
    parts.append(f"Computed, GB: the peak of each phase, with activations\n\n{peaks_table(found)}\n")
    return parts


def main(args: argparse.Namespace) -> None:
    parts = [] if args.measure_only else computed_parts()
    if torch.cuda.is_available():
        for name in MODELS:
            saved(name, args.output_dir)
        reports = run_jobs([trial_job(*trial, args) for trial in TRIALS], at_a_time=1)
        parts.append(
            f"Measured on {reports[0]['device']}, {args.images} images an iteration\n\n{measured_table(reports)}\n"
        )
    else:
        parts.append("Nothing was measured: there is no GPU.\n")
    text = "\n".join(parts)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_aside(args.output_dir / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
