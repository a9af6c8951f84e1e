from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from common.film import FiLM, FiLMTrunk, timestep_embedding, widths_for


def test_a_trunk_ignores_its_condition_until_it_is_trained() -> None:
    torch.manual_seed(0)
    trunk = FiLMTrunk(4, [8, 16], condition_dim=6)
    x = torch.randn(3, 4, 8, 8)
    one, other = torch.randn(3, 6), torch.randn(3, 6)
    assert torch.equal(trunk(x, one), trunk(x, other))

    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1)
    trunk(x, one).square().mean().backward()
    optimizer.step()
    assert (trunk(x, one) - trunk(x, other)).abs().max() > 1e-4


def test_film_scales_and_shifts_each_channel() -> None:
    film = FiLM(1, 2)
    with torch.no_grad():
        film.to_scale_shift.weight.copy_(
            torch.tensor([[1.0], [0.0], [0.0], [5.0]])
        )  # scale 1, scale 2, shift 1, shift 2
    x = torch.randn(1, 2, 3, 3)
    out = film(x, torch.ones(1, 1))
    torch.testing.assert_close(out[:, 0], 2 * x[:, 0])
    torch.testing.assert_close(out[:, 1], x[:, 1] + 5)


def test_each_sample_has_its_own_condition() -> None:
    torch.manual_seed(0)
    trunk = FiLMTrunk(4, [8, 8], condition_dim=6)
    for p in trunk.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, condition = torch.randn(3, 4, 8, 8), torch.randn(3, 6)
    alone = torch.cat([trunk(x[i : i + 1], condition[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(trunk(x, condition), alone, atol=1e-5, rtol=1e-4)
    assert trunk(x, condition).shape == (3, trunk.out_features)


@pytest.mark.parametrize("side", [4, 8, 12, 16, 64, 96, 128])
def test_widths_bring_the_latent_down_to_four_at_most(side: int) -> None:
    widths = widths_for(side, 16, max_width=64)
    last = side
    for _ in widths[1:]:
        last = (last + 1) // 2
    assert last <= 4 and 2 * last * 2 > min(side, 8) // 2
    assert widths[0] == 16 and all(b in (2 * a, 64) for a, b in pairwise(widths)) and max(widths) <= 64
    assert FiLMTrunk(4, widths, 8)(torch.randn(1, 4, side, side), torch.randn(1, 8)).isfinite().all()


def test_timestep_embeddings_tell_all_timesteps_apart() -> None:
    embeddings = timestep_embedding(torch.arange(1000), 32)
    assert embeddings.shape == (1000, 32) and embeddings.dtype == torch.float32
    distances = torch.cdist(embeddings, embeddings) + torch.eye(1000) * 10
    assert distances.min() > 1e-2
    torch.testing.assert_close(embeddings[0], torch.cat([torch.ones(16), torch.zeros(16)]))
