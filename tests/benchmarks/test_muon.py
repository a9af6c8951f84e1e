"""The steps of Muon, alone and beside AdamW's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.worlds.muon import Muon, MuonAdamW, orthogonalised


@pytest.mark.parametrize("shape", [(64, 216), (256, 576), (50, 20)])
def test_an_orthogonalised_matrix_keeps_its_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ v.T
    scales = inner.diagonal()
    assert (scales > 0.6).all() and (scales < 1.3).all()
    assert (inner - scales.diag()).abs().max() < 1e-4


def test_elsewhere_muon_is_sgd_with_nesterovs_momentum() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([{"params": [ours], "lr": 0.1}]),
        torch.optim.SGD([theirs], lr=0.1, momentum=0.85, nesterov=True),
    )
    for _ in range(4):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            weight.pow(4).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs) and not torch.allclose(ours, start)


def test_the_size_of_a_gradient_does_not_change_a_filters_step() -> None:
    start, direction = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    steps = []
    for scale in (1e-3, 1.0):
        weight = nn.Parameter(start.clone())
        weight.grad = scale * direction
        Muon([{"params": [weight], "lr": 0.1, "orthogonal": True}]).step()
        steps.append(weight.detach() - start * 8**0.5 / start.norm())
    assert torch.allclose(steps[0], steps[1], atol=1e-5)
    assert 0.06 < torch.linalg.matrix_norm(steps[0].flatten(1), 2) < 0.13


def test_beside_adamw_other_weights_move_as_adamw_moves_them() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    layer = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    optimizers = (
        MuonAdamW([{"params": [layer], "orthogonal": True}, {"params": [ours]}], lr=0.1),
        torch.optim.AdamW([theirs], lr=0.1, weight_decay=1e-4),
    )
    for _ in range(4):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (weight.pow(4).sum() + layer.square().sum()).backward()
            optimizer.step()
    assert torch.equal(ours, theirs) and not torch.allclose(ours, start)


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (64, 64)])
def test_beside_adamw_a_layers_step_has_the_size_of_adamws(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    start, direction = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    steps = []
    for scale in (1e-3, 1.0):
        weight = nn.Parameter(start.clone())
        weight.grad = scale * direction
        MuonAdamW([{"params": [weight], "orthogonal": True}], lr=0.1, weight_decay=0.0).step()
        steps.append(start - weight.detach())
    assert torch.allclose(steps[0], steps[1], atol=1e-5)
    assert 0.015 < steps[0].square().mean().sqrt() < 0.025  # 0.2 of the learning rate
