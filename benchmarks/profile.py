"""Where the time of an iteration goes: `python -m benchmarks.profile -- ARGUMENTS OF THE TRAINING SCRIPT`.

Trains a few iterations, by default of "Van Gogh style" on the bundled canvas, with a watch on the parts. Every second counts once, in the innermost part
that has a name. What is not the UNet's forward and backward passes is overhead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import UNet2DConditionModel

import train_unlearn_lora as script
from benchmarks.stopwatch import Stopwatch, now
from critic.critic import Critic
from environment.environment import Environment

FORWARD, BACKWARD = "UNet, forward", "UNet, backward"
PARTS: list[tuple[Any, str, str]] = [
    (UNet2DConditionModel, "forward", FORWARD),
    (Accelerator, "backward", BACKWARD),
    (Environment, "collect", "rollout, the rest"),
    (Environment, "finish", "VAE and teacher"),
    (Environment, "predict", "reward predictor"),
    (script, "slopes_of_values", "slopes of reward predictor and critic"),
    (script, "update_policy", "update, the rest"),
    (AcceleratedOptimizer, "step", "optimizer"),
    (Critic, "observe", "critic"),
    (Critic, "fit", "critic"),
]
"""Whose function is which part."""


@dataclass(frozen=True)
class Profile:
    """Seconds of some iterations: in all, and by part."""

    iterations: int
    total: float
    parts: dict[str, float]
    calls: dict[str, int]

    @property
    def overhead(self) -> float:
        """Share of the time that is not the UNet's."""
        return 1 - (self.parts[FORWARD] + self.parts[BACKWARD]) / self.total


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Have the parts of the training script timed."""
    with ExitStack() as stack:
        for owner, function, name in PARTS:
            stack.enter_context(patch.object(owner, function, watch.timed(name, getattr(owner, function))))
        yield


def profile(args: argparse.Namespace) -> Profile:
    """Train with the watch on, from after the base has been measured to the last update."""
    watch, measure_base = Stopwatch(), script.measure_base
    started = 0.0

    def measured(*given: Any) -> script.Base:
        nonlocal started
        base = measure_base(*given)
        watch.clear()
        started = now()
        return base

    parts = script.prepare(args)
    with watched(watch), patch.object(script, "measure_base", measured):
        tracking = script.Tracking(parts.accelerator)
        progress, _ = script.learn(args, parts.accelerator, parts.env, parts.optimizer, parts.critic, None, script.Interruption(), tracking)
    return Profile(progress.iteration, now() - started, dict(watch.seconds), dict(watch.calls))


def table(found: Profile) -> str:
    """Markdown: a row for each part, the longest first, and what is left."""
    lines = ["| part | seconds an iteration | share | calls an iteration |", "|---|---|---|---|"]
    rows = [*sorted(found.parts.items(), key=lambda row: -row[1]), ("everything else", found.total - sum(found.parts.values()))]
    for name, seconds in rows:
        calls = f"{found.calls[name] / found.iterations:g}" if name in found.calls else ""
        lines.append(f"| {name} | {seconds / found.iterations:.3f} | {100 * seconds / found.total:.1f} % | {calls} |")
    lines.append(f"| **together** | **{found.total / found.iterations:.3f}** | of which overhead: **{100 * found.overhead:.1f} %** | |")
    return "\n".join(lines)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4, help="How many iterations are watched.")
    parser.add_argument("arguments", nargs="*", help="Further arguments of the training script, after --.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    with TemporaryDirectory() as directory:
        flags = {
            "max_train_iterations": args.iterations,
            "validation_steps": 0,
            "checkpointing_steps": 0,
            "report_to": "none",
            "target_unlearning_accuracy": 1.1,
            "output_dir": Path(directory) / "run",
        }
        given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        settings = script.parse_args(["--concept", "Van Gogh style", *given, "--evaluation_seeds", *args.arguments])
        settings.output_dir.mkdir()
        print(table(profile(settings)))


if __name__ == "__main__":
    main(parse_args())
