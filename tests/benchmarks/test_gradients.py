from __future__ import annotations

import torch

from benchmarks.gradients import agreement, figures, signal_and_noise, table


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
    found = figures((x + y).repeat(4, 1), {"no_baseline": x.repeat(4, 1), "pathwise": (x - y).repeat(4, 1)})
    assert abs(found["cosine_to_no_baseline"] - 2**-0.5) < 1e-5 and abs(found["cosine_to_pathwise"]) < 1e-5
    assert "| step | 1.00 |" in table({"cat": {"step": found | {"snr": 1.0}}})
