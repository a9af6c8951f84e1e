from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.diagnostics import ceiling, critics, gradients
from benchmarks.diagnostics.__main__ import main
from benchmarks.diagnostics.gradients import agreement, metrics, signal_and_noise, table


def test_the_same_gradient_every_time_is_all_signal() -> None:
    same = torch.randn(1, 50).repeat(6, 1)
    signal, noise = signal_and_noise(same)
    torch.testing.assert_close(
        torch.tensor([agreement(same), signal / same[0].square().sum().item(), noise + 1]),
        torch.ones(3),
        atol=1e-4,
        rtol=0,
    )


def test_noise_alone_has_no_signal() -> None:
    noise = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    signal, trace = signal_and_noise(noise)
    assert abs(agreement(noise)) < 0.01 and abs(signal) < 0.01 * trace and abs(trace / 1000 - 1) < 0.02


def test_signal_and_noise_are_those_of_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.nn.functional.normalize(torch.randn(1000, generator=generator), dim=0)
    signal, noise = signal_and_noise(mean + torch.randn(400, 1000, generator=generator))
    assert abs(signal - 4) < 0.5 and abs(noise - 1000) < 20


def test_bias_is_a_direction_of_its_own() -> None:
    x, y = torch.eye(2)
    found = metrics((x + y).repeat(4, 1), {"no_baseline": x.repeat(4, 1), "pathwise": (x - y).repeat(4, 1)})
    assert abs(found["cosine_to_no_baseline"] - 2**-0.5) < 1e-5 and abs(found["cosine_to_pathwise"]) < 1e-5
    assert "| step | 1.00 |" in table({"cat": {"step": found | {"snr": 1.0}}})


def test_the_first_word_names_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for name, flag in (
        ("gradients", "--num_batches"),
        ("critics", "--num_held_out"),
        ("ceiling", "--continuations"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0 and flag in capsys.readouterr().out
    for given, code in ([], 2), (["slopes"], 2), (["--help"], 0):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == code


def rewards_of(states: int, decided: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What states decide, (N,), rewards (N, 16) of which they decide that share, and prompts (N,) that
    differ far more."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(states) % 4
    value = decided**0.5 * torch.randn(states, generator=generator)
    noise = (1 - decided) ** 0.5 * torch.randn(states, 16, generator=generator)
    return value, 10.0 * groups[:, None] + value[:, None] + noise, groups


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_ceiling_is_what_states_decide_and_who_knows_it_reaches_it(share: float) -> None:
    value, rewards, groups = rewards_of(800, share)
    assert ceiling.decided(rewards, groups) == pytest.approx(share, abs=0.05)
    assert ceiling.explained(5 * value, rewards, groups) == pytest.approx(share, abs=0.05)
    assert ceiling.explained(-value, rewards, groups) == pytest.approx(0, abs=0.01)
    by_prompt = ceiling.explained(groups.float(), rewards, groups)
    assert by_prompt == pytest.approx(0, abs=0.01)


def test_a_straight_line_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2000, 5, generator=generator), torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5])
    found = ceiling.ridge(x, x @ weights)
    assert torch.nn.functional.cosine_similarity(found, weights, dim=0) > 0.999


def test_gradients_and_critics_of_a_frozen_policy(
    command_line: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny pipeline: what they call is there, and what they write is complete."""

    def quiet(concept: str, seed: int, output_dir: Path) -> list[str]:
        return command_line(concept=concept, seed=seed, output_dir=tmp_path / "none")

    monkeypatch.setattr(gradients, "quiet_arguments", quiet)
    monkeypatch.setattr(critics, "quiet_arguments", quiet)
    monkeypatch.setattr(ceiling, "quiet_arguments", quiet)
    few = gradients.parse_gradients(["--num_batches", "4", "--output_dir", str(tmp_path)])
    found = gradients.measure("Van Gogh style", few)
    assert set(found) == {gradients.REFERENCE, *gradients.ESTIMATORS}
    assert all(math.isfinite(value) for row in found.values() for value in row.values())
    line = ["--num_rollouts", "8", "--num_held_out", "6", "--fit_steps", "2", "--output_dir", str(tmp_path)]
    by_start, _, timesteps = critics.measure("Van Gogh style", None, critics.parse_critics(line))
    assert len(timesteps) == 4 and set(by_start) == set(critics.STARTS[:2])
    assert critics.table({"cat": by_start}).count(f"| {critics.STARTS[0]} |") == 2

    line = ["--steps", "1", "3", "--num_states", "8", "--continuations", "2", "--num_learnt", "6"]
    known, labels = ceiling.measure_all(ceiling.parse_ceiling(line))
    assert list(known) == ["the base"] and set(known["the base"]) == set(ceiling.KNOWERS)
    assert all(len(shares) == len(labels) == 2 for shares in known["the base"].values())
    assert ceiling.table(known, labels).count("| the base |") == len(ceiling.KNOWERS)
    with pytest.raises(ValueError, match=r"--steps 4\b.* 0 to 3\b"):
        ceiling.measure_all(ceiling.parse_ceiling(["--steps", "4"]))
