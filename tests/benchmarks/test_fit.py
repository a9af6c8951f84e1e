"""A training of a world's model that is interrupted ends as one that is not, from the file it has written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.worlds.canvas.fit import INNER_SIZE, Recipe, adamw, fit, muon

STEPS, SAVE_EVERY = 12, 4
ADAMW = adamw(0.1)


def train(
    state_dir: Path,
    stop_at: int = STEPS,
    ema_decay: float | None = 0.9,
    recipe: Recipe = ADAMW,
    size: tuple[int, int] = (3, 2),
) -> nn.Linear:
    """A model after STEPS, or after as many as a training makes that is stopped at a step.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    torch.manual_seed(0)
    model = nn.Linear(*size)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        return model(torch.randn(8, size[0], generator=generator)).square().mean()

    fit(
        "model",
        model,
        loss,
        recipe,
        steps=STEPS,
        state_dir=state_dir,
        seed=0,
        ema_decay=ema_decay,
        save_every=SAVE_EVERY,
    )
    return model


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_a_training_that_was_interrupted_ends_as_one_that_was_not(
    ema_decay: float | None, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", ema_decay=ema_decay)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop_at=6, ema_decay=ema_decay)
    resumed = train(tmp_path / "parts", ema_decay=ema_decay)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_so_does_one_by_muon(tmp_path: Path) -> None:
    size = (INNER_SIZE, INNER_SIZE)
    whole = train(tmp_path / "whole", recipe=muon(0.1), size=size)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop_at=6, recipe=muon(0.1), size=size)
    resumed = train(tmp_path / "parts", recipe=muon(0.1), size=size)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert not torch.equal(whole.weight, train(tmp_path / "adamw", size=size).weight)


def test_the_state_is_read_by_the_names_that_are_in_files_of_trainings_under_way(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop_at=SAVE_EVERY)
    file = tmp_path / "parts" / "model.safetensors"
    state = load_file(file)
    assert {"model.weight", "model.bias", "ema.0", "ema.1", "step"} < state.keys()
    assert all(name.split(".")[0] in ("model", "optimizer", "ema", "step") for name in state)
    assert int(state["step"]) == SAVE_EVERY and state["ema.0"].shape == (2, 3)
    resumed = train(tmp_path / "parts")
    assert torch.equal(resumed.weight, whole.weight)
    save_file(state | {"ema.0": state["ema.0"] + 1}, file)
    assert not torch.equal(train(tmp_path / "parts").weight, whole.weight)


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    averaged, last = train(tmp_path / "averaged"), train(tmp_path / "last", ema_decay=None)
    torch.testing.assert_close(averaged.weight, last.weight, atol=0.3, rtol=0)
    assert not torch.equal(averaged.weight, last.weight)
