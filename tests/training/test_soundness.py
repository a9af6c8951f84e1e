from __future__ import annotations

import math

import pytest

from training.soundness import what_is_no_number

FIGURES = {"forget_reward": 0.1, "noisy_reward": 0.2, "contrast": 0.3, "retain_drop": -1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([], ""),
        (["noisy_reward"], "reward.train"),
        (["forget_reward"], "--clip_model"),
        (["forget_reward", "noisy_reward"], "--clip_model"),
        (list(FIGURES), "--pretrained_vae_model_name_or_path"),
    ],
)
def test_what_is_no_number_names_whom_to_look_at(wrong: list[str], says: str, value: float) -> None:
    found = what_is_no_number(FIGURES | dict.fromkeys(wrong, value))
    assert bool(found) == bool(wrong) and says in found and "\n" not in found
