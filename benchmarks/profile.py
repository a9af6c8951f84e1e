"""Where the time of an iteration goes: `python -m benchmarks.profile -- ARGUMENTS OF THE TRAINING SCRIPT`.

Trains a few iterations, by default of "Van Gogh style" on the bundled canvas, with a watch on the parts;
`--model` has a base of full size with random weights in its place. Every second counts once, in the innermost
part that has a name. What is not the UNet's forward and backward passes is overhead. The UNet's own
operations in a second stand beside what a product of two large matrices reaches on the same device in the
same run. What gradient checkpointing does twice counts once.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import UNet2DConditionModel

import train_unlearn_lora as script
from benchmarks.memory.models import MODELS, saved, short_run
from benchmarks.operations import forward_operations, matrix_peak
from benchmarks.stopwatch import Stopwatch, now
from common.errors import friendly_errors
from critic.critic import Critic
from environment.environment import Environment
from pipelines.memory import DTYPES

FORWARD, LEARNING, BACKWARD = "UNet, forward", "UNet, forward with a graph", "UNet, backward"
UNET = (FORWARD, LEARNING, BACKWARD)
PARTS: list[tuple[Any, str, str]] = [
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
"""Whose function is which part, beside the UNet's forward passes."""


@dataclass(frozen=True)
class Profile:
    """Some iterations.

    Attributes:
        total, parts: seconds, in all and by part.
        calls: how often each part was called.
        samples: rows that went through the UNet, by its part; both branches of guidance count.
        operations: of the UNet for one of them; through a frozen UNet a backward pass costs what a forward
            pass does.
        peak: operations a second of a large matrix product in the UNet's precision.
    """

    iterations: int
    total: float
    parts: dict[str, float]
    calls: dict[str, int]
    samples: dict[str, int]
    operations: int
    peak: float

    @property
    def overhead(self) -> float:
        """Share of the time that is not the UNet's."""
        return 1 - sum(self.parts[part] for part in UNET) / self.total

    def utilisation(self, *parts: str) -> float:
        """Share of the peak that the UNet reaches in some of its parts."""
        return (
            self.operations
            * sum(self.samples[part] for part in parts)
            / sum(self.parts[part] for part in parts)
            / self.peak
        )


@contextmanager
def watched(watch: Stopwatch, samples: Counter[str]) -> Iterator[None]:
    """Have the parts of the training script timed, and the UNet's rows counted."""
    forward = {name: watch.timed(name, UNet2DConditionModel.forward) for name in (FORWARD, LEARNING)}

    def counted(unet: UNet2DConditionModel, sample: torch.Tensor, *given: Any, **named: Any) -> Any:
        learns = torch.is_grad_enabled()
        samples.update({LEARNING: len(sample), BACKWARD: len(sample)} if learns else {FORWARD: len(sample)})
        return forward[LEARNING if learns else FORWARD](unet, sample, *given, **named)

    with ExitStack() as stack:
        stack.enter_context(patch.object(UNet2DConditionModel, "forward", counted))
        for owner, function, name in PARTS:
            stack.enter_context(patch.object(owner, function, watch.timed(name, getattr(owner, function))))
        yield


def profile(args: argparse.Namespace) -> Profile:
    """Train with the watch on, from after the base has been measured to the last update."""
    watch, samples, measure_base = Stopwatch(), Counter[str](), script.measure_base
    started = 0.0

    def measured(*given: Any) -> script.Base:
        nonlocal started
        base = measure_base(*given)
        watch.clear()
        samples.clear()
        started = now()
        return base

    parts = script.prepare(args)
    operations = forward_operations(parts.env.pipe.unet, parts.env.pipe.tokenizer.model_max_length)
    peak = matrix_peak(parts.accelerator.device, DTYPES[args.mixed_precision])
    with watched(watch, samples), patch.object(script, "measure_base", measured):
        tracking = script.Tracking(parts.accelerator)
        progress, _ = script.learn(
            args,
            parts.accelerator,
            parts.env,
            parts.optimizer,
            parts.critic,
            None,
            script.Interruption(),
            tracking,
        )
    return Profile(
        progress.iteration,
        now() - started,
        dict(watch.seconds),
        dict(watch.calls),
        dict(samples),
        operations,
        peak,
    )


def table(found: Profile) -> str:
    """Markdown: a row for each part, the longest first, and what is left; then what the UNet reaches of
    the peak."""
    lines = [
        "| part | seconds an iteration | share | calls an iteration | of the peak |",
        "|---|---|---|---|---|",
    ]
    rows = [
        *sorted(found.parts.items(), key=lambda row: -row[1]),
        ("everything else", found.total - sum(found.parts.values())),
    ]
    for name, seconds in rows:
        calls = f"{found.calls[name] / found.iterations:g}" if name in found.calls else ""
        reached = f"{100 * found.utilisation(name):.0f} %" if name in UNET else ""
        lines.append(
            f"| {name} | {seconds / found.iterations:.3f} | {100 * seconds / found.total:.1f} % | {calls} | {reached} |"
        )
    lines.append(
        f"| **together** | **{found.total / found.iterations:.3f}** | of which overhead: **{100 * found.overhead:.1f} %** | | |"
    )
    done = found.operations * sum(found.samples.values()) / found.iterations
    return "\n".join(lines) + (
        f"\n\nThe UNet: {found.operations / 1e9:.3g} GFLOP a sample forward, {done / 1e12:.3g} TFLOP an iteration. A large matrix product reaches "
        f"{found.peak / 1e12:.3g} TFLOP/s; the UNet {100 * found.utilisation(*UNET):.0f} % of it, in updates {100 * found.utilisation(LEARNING, BACKWARD):.0f} %."
    )


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=4, help="How many iterations are watched.")
    parser.add_argument(
        "--model",
        choices=list(MODELS),
        help="A base of full size with random weights. Default: the bundled one.",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=32,
        help="Of --model: trajectories of an iteration, and rollouts before the first.",
    )
    parser.add_argument(
        "--bases",
        type=Path,
        default=Path("runs/memory"),
        help="Where --model is written, once; `benchmarks.memory` shares it.",
    )
    parser.add_argument("arguments", nargs="*", help="Further arguments of the training script, after --.")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    with TemporaryDirectory() as directory:
        of_model = (
            short_run(saved(args.model, args.bases), args.images)
            if args.model
            else ["--concept", "Van Gogh style", "--evaluation_seeds"]
        )
        flags = {
            "max_train_iterations": args.iterations,
            "cooldown_updates": 0,
            "validation_steps": 0,
            "checkpointing_steps": 0,
            "report_to": "none",
            "target_unlearning_accuracy": 1.1,
            "output_dir": Path(directory) / "run",
        }
        given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        settings = script.parse_args([*of_model, *given, *args.arguments])
        settings.output_dir.mkdir()
        print(table(profile(settings)))


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
