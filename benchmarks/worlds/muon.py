"""Muon, for convolutional networks (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/):
torch's own takes matrices alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum; where a group says `orthogonal`, its steps are made orthogonal and its weights
    kept at one norm.

    A filter bank (O, I, h, w) counts as a matrix (O, I h w) of norm sqrt(O), as in Jordan's training of
    CIFAR-10 (https://github.com/KellerJordan/cifar10-airbench); it should be followed by a normalisation,
    which makes that norm irrelevant.

    Args:
        groups: of parameters, each with its `lr`, its `momentum` and whether it is `orthogonal`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.85) -> None:
        super().__init__(groups, {"momentum": momentum, "orthogonal": False})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(state["momentum"], alpha=group["momentum"])
                if group["orthogonal"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    update = orthogonalised(update.flatten(1)).reshape(weight.shape)
                weight.sub_(update, alpha=group["lr"])


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but where a group says `orthogonal`, momentum is made orthogonal in place of Adam's division.

    Such a step is as large as AdamW's usually are, so that one learning rate and one weight decay serve both
    (Liu et al., 2025, https://arxiv.org/abs/2502.16982). Networks keep their own norms: this is for those in
    which not every layer is normalised.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float = 1e-4) -> None:
        super().__init__(
            [{"orthogonal": False} | group for group in groups], lr=lr, weight_decay=weight_decay
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else []:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW counts its steps, and misses them where there are none
                    state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(weight)}
                state["step"] += 1
                state["momentum"].lerp_(weight.grad, 1 - self.MOMENTUM)
                matrix = weight.grad.lerp(state["momentum"], self.MOMENTUM).flatten(1)
                size = 0.2 * max(matrix.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(orthogonalised(matrix, 5).reshape(weight.shape), alpha=group["lr"] * size)
                weight.grad = None  # AdamW passes over a weight without a gradient
        super().step()


def orthogonalised(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """(N, M) -> about U V^T of its singular value decomposition: Newton and Schulz's iteration, with Jordan's
    coefficients.

    Singular values of a matrix that is not nearly singular come to lie between 0.6 and 1.3, which is as good
    as 1 for a step.
    """
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if len(matrix) > len(matrix.T) else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if len(matrix) > len(matrix.T) else x
