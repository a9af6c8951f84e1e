"""What a run would do and cost, before anything is written: `--dry_run`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from common.memory import peak_memory_mb

SHOWN = 4
"""How many texts of a list are shown."""


@dataclass(frozen=True)
class Costs:
    """What a probe has measured.

    Attributes:
        draw: seconds for an image of a rollout.
        learn: seconds to update the policy by an image.
        memory: peak in MB (`common.memory`), if the system says.
    """

    draw: float
    learn: float
    memory: float | None


@dataclass(frozen=True)
class Amounts:
    """How much there is to do.

    Attributes:
        before: images drawn before the first iteration.
        drawn: images drawn in an iteration.
        learnt: those of them that the policy learns from.
        iterations: at most.
        cooldown: updates after the last.
        evaluated: images of the final figures, both sides together.
        evaluation_steps: their denoising steps, and `steps` those of a rollout.
    """

    before: int
    drawn: int
    learnt: int
    iterations: int
    cooldown: int
    evaluated: int
    evaluation_steps: int
    steps: int

    def seconds(self, costs: Costs) -> dict[str, float]:
        """By stage; "iteration" is one of them."""
        return {
            "before": self.before * costs.draw,
            "iteration": self.drawn * costs.draw + self.learnt * costs.learn,
            "cooldown": self.cooldown * self.learnt * costs.learn,
            "evaluation": self.evaluated * costs.draw * self.evaluation_steps / self.steps,
        }


def probe(
    draw: Callable[[], object], learn: Callable[[], object], images: int, device: torch.device
) -> Costs:
    """Time `draw` and then `learn`, each of which is about so many images."""
    seconds = []
    for act in (draw, learn):
        started = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - started) / images)
    return Costs(*seconds, memory=peak_memory_mb())


def costs_in_words(amounts: Amounts, costs: Costs) -> dict[str, str]:
    """Images, time and memory, by what the plan calls them."""
    seconds = amounts.seconds(costs)
    longest = (
        seconds["before"]
        + amounts.iterations * seconds["iteration"]
        + seconds["cooldown"]
        + seconds["evaluation"]
    )
    return {
        "Images": f"{amounts.before} before training, {amounts.drawn} an iteration, {amounts.evaluated} in the evaluation",
        "Time": f"{duration(seconds['before'])} before training, {duration(seconds['iteration'])} an iteration, "
        f"{duration(seconds['evaluation'])} for the evaluation; {duration(longest)} if it takes all {amounts.iterations} iterations",
        "Memory": f"{costs.memory / 1000:.1f} GB at the probe's peak; a whole batch takes more"
        if costs.memory
        else "unknown",
    }


def duration(seconds: float) -> str:
    """As 0:01:30, seldom more exact than the probe was."""
    return str(datetime.timedelta(seconds=max(1, round(seconds))))


def listing(texts: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    shown = ", ".join(f'"{text}"' for text in texts[:SHOWN])
    return f"{len(texts)}: {shown}{', …' if len(texts) > SHOWN else ''}"
