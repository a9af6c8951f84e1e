from __future__ import annotations

import math

import pytest

from training.soundness import nonfinite_cause

METRICS = {"forget_reward": 0.1, "noisy_reward": 0.2, "contrast": 0.3, "retain_drop": -1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ([], ""),
        (["noisy_reward"], "reward.train"),
        (["forget_reward"], "--clip_model"),
        (["forget_reward", "noisy_reward"], "--clip_model"),
        (list(METRICS), "--pretrained_vae_model_name_or_path"),
    ],
)
def test_the_cause_of_a_metric_that_is_not_finite_is_named(
    wrong: list[str], names: str, value: float
) -> None:
    found = nonfinite_cause(METRICS | dict.fromkeys(wrong, value))
    assert bool(found) == bool(wrong) and names in found and "\n" not in found
