"""Benchmarks that call the training script's own functions, on a tiny pipeline: what they call is there,
and what they write is complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import benchmarks.ablation.run as ablation
from benchmarks import critics, gradients
from benchmarks.ablation.variants import VARIANTS

CommandLine = Callable[..., list[str]]


@pytest.mark.parametrize("variant", ["default", "with a critic", "plain ddpo"])
def test_a_run_of_the_ablation_is_judged_on_its_way(
    variant: str, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "JUDGED_STEPS", 2)
    replaced = {
        name: False
        for name in (
            "concept",
            "output_dir",
            "max_train_iterations",
            "evaluation_seeds",
            "report_to",
            "validation_steps",
            "checkpointing_steps",
        )
    }
    tiny = command_line(**replaced, target_unlearning_accuracy=False)
    found = ablation.train_and_judge(
        "Van Gogh style", 0, 5e-3, [*tiny, *VARIANTS[variant]], budget=40, every=1, seeds=[0]
    )
    iterations = [point["iteration"] for point in found["curve"]]
    assert iterations == list(range(1, len(iterations) + 1)) and len(iterations) >= 3
    assert all(
        0 <= point[name] <= 100 for point in [found["base"], *found["curve"]] for name in ("UA", "IRA")
    )
    images = [point["images"] for point in found["curve"]]
    assert images == sorted(images) and found["training"]["images"] <= 40 + 9
    assert len(found["diagnostics"]) == len(iterations) + 1


def test_gradients_and_critics_of_a_frozen_policy(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quiet(concept: str, seed: int, output_dir: Path) -> list[str]:
        return command_line(concept=concept, seed=seed, output_dir=tmp_path / "none")

    monkeypatch.setattr(gradients, "quiet_arguments", quiet)
    monkeypatch.setattr(critics, "quiet_arguments", quiet)
    found = gradients.measure(
        "Van Gogh style", gradients.parse_args(["--num_batches", "4", "--output_dir", str(tmp_path)])
    )
    assert set(found) == {gradients.REFERENCE, *gradients.ESTIMATORS}
    assert all(math.isfinite(value) for row in found.values() for value in row.values())
    few = ["--num_rollouts", "8", "--num_held_out", "6", "--fit_steps", "2", "--output_dir", str(tmp_path)]
    by_start, _, timesteps = critics.measure("Van Gogh style", None, critics.parse_args(few))
    assert len(timesteps) == 4 and set(by_start) == set(critics.STARTS[:2])
