"""Our trainer beside TRL's DDPOTrainer: `python -m benchmarks.peers`.

TRL 0.23.1 is the last release with a DDPOTrainer; it is installed with this project into an environment of
its own, `OUTPUT_DIR/env`. Three runs for each concept and seed, one after the other: the peer, our trainer
with the peer's algorithm, our trainer as it is. Same pipeline, prompts, finished-image reward and seeds;
every image is judged by the same judge, and judging is on nobody's clock. The peer runs at each of
--peer_learning_rates, each a row of the table. A run is one JSON file, and what is there is not run again.
Written are peers.md and peers.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.tables import reached
from benchmarks.jobs import Job, run_jobs, slug
from benchmarks.peers.settings import PEER_RELEASE
from benchmarks.report import markdown, write_json, write_text
from common.errors import friendly_errors
from common.flags import IMAGE_SEED, SEED, flag, parse
from evaluation.metrics import HEADLINE

PEER, MATCHED, OURS = "TRL DDPO", "ours, the peer's algorithm", "ours"
Trial = tuple[str, float, str, int]
"""Trainer, learning rate, concept and seed."""


@dataclass(frozen=True)
class PeersConfig:
    """Runs."""

    concepts: tuple[str, ...] = flag(
        ("Van Gogh style", "cat"), help="What to erase, each in runs of its own."
    )
    seeds: tuple[int, ...] = flag((0, 1, 2), within=SEED, help="Training seeds.")
    budget: int = flag(1600, at_least=1, help="Images that a run may draw.")
    every: int = flag(2, at_least=1, help="Iterations between two judgements.")
    judge_seeds: tuple[int, ...] = flag(
        (0, 1), within=IMAGE_SEED, help="One image for each prompt and seed in every judgement."
    )
    peer_learning_rates: tuple[float, ...] = flag(
        (3e-3, 1e-2), above=0, help="What the peer's algorithm runs at."
    )
    learning_rate: float = flag(1e-2, above=0, help="What ours runs at.")
    output_dir: Path = flag(Path("runs/peers"), help="Where environment, runs, table and JSON are written.")


def make_environment(directory: Path) -> Path:
    """The Python of an environment with the peer and this project, made once."""
    python = directory / "bin" / "python"
    if not (directory / ".installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", "constraints.txt"]
        subprocess.run([*install, PEER_RELEASE, "--editable", "."], check=True)
        (directory / ".installed").touch()
    return python


def job(trial: Trial, config: PeersConfig, peer_python: Path) -> Job:
    """One run."""
    name, rate, concept, seed = trial
    file = slug(f"{name}-{concept}-{seed}-{rate:g}", keep=".")
    output = config.output_dir / "runs" / f"{file}.json"
    given = {
        "concept": concept,
        "seed": seed,
        "learning_rate": rate,
        "every": config.every,
        "output": output,
        "budget": config.budget,
    }
    words = [word for flag_name, value in given.items() for word in (f"--{flag_name}", str(value))]
    words += ["--judge_seeds", *map(str, config.judge_seeds)]
    log = output.with_suffix(".log")
    if name == PEER:
        return Job(["-m", "benchmarks.peers.trl_ddpo", *words], output, log, str(peer_python))
    matched = ["--matched"] if name == MATCHED else []
    return Job(["-m", "benchmarks.peers.ours", *words, *matched], output, log)


def seconds_to_target(found: Mapping[str, Any]) -> float | None:
    """Seconds until UA was at the target with IRA and CRA near the base's; None if that never was."""
    images = reached(found)
    return next((point["seconds"] for point in found["curve"] if point["images"] == images), None)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row a trainer: speed, and how far it got, summed or averaged over its runs."""
    rows = []
    for name, rate in dict.fromkeys((found["name"], found["learning_rate"]) for found in runs):
        of = [found for found in runs if (found["name"], found["learning_rate"]) == (name, rate)]
        images = sum(found["images"] for found in of)
        taken = [sum(found["seconds"] for found in of)]
        taken += [sum(found["parts"][part] for found in of) for part in ("rollout", "update")]
        got = [(reached(found), seconds_to_target(found)) for found in of if reached(found) is not None]
        to_target = ["-", "-"]
        if got:
            to_target = [f"{sum(column) / len(got):.0f}" for column in zip(*got, strict=True)]
        end = [f"{sum(found['curve'][-1][metric] for found in of) / len(of):.1f}" for metric in HEADLINE]
        speeds = [f"{images / seconds:.2f}" for seconds in taken]
        rows.append([name, f"{rate:g}", *speeds, f"{len(got)} of {len(of)}", *to_target, *end])
    header = ["trainer", "learning rate", "images a second", "rollout", "update", "reached the target"]
    return markdown([*header, "images to it", "seconds to it", *HEADLINE], rows)


def parse_config(arguments: Sequence[str] | None = None) -> PeersConfig:
    """The settings of a command line."""
    return parse(PeersConfig, arguments, __doc__, prog="python -m benchmarks.peers")


def main(config: PeersConfig) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    python = make_environment(config.output_dir.resolve() / "env")
    matched = [(name, rate) for rate in config.peer_learning_rates for name in (PEER, MATCHED)]
    trials = [
        (name, rate, concept, seed)
        for name, rate in [*matched, (OURS, config.learning_rate)]
        for concept in config.concepts
        for seed in config.seeds
    ]
    done = run_jobs([job(trial, config, python) for trial in trials], at_a_time=1)
    runs = [
        found | {"name": name, "concept": concept, "seed": seed, "learning_rate": rate}
        for found, (name, rate, concept, seed) in zip(done, trials, strict=True)
    ]
    write_json(config.output_dir / "peers.json", runs)
    write_text(config.output_dir / "peers.md", table(runs))
    print(table(runs))


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
