"""RECE, reliable and efficient concept erasure (Gong et al., 2024, arXiv 2407.12383): after an edit by UCE,
the states that the edited layers still map to the concept are derived and erased too. With W_i⁰ the base's
keys and values of all layers of cross-attention and W_i the edited ones, a state c of the concept has

    c' = argmin_x Σ_i |W_i x - W_i⁰ c|² + λ |x|² = (λ I + Σ_i W_iᵀ W_i)⁻¹ Σ_i W_iᵀ W_i⁰ c,

and UCE's equation edits W_i once more, with c' as what is erased: from the edited weights, which also give
the values of guides and of what is preserved. Both steps are repeated, always with c and W⁰ as they were. λ
keeps c' short, since what its erasure does to another state grows with it.

Published: UCE with s_e 1 and 0.1 for preservation and damping, all states of the concept's name, guided by
the empty text (styles: "art"), preserving the empty text; one repetition for styles and objects, three for
nudity; λ 1e-3 for styles and for objects that UCE erases badly, else 1e-1. The authors keep the repetition
that their detector likes best. All of this is as their code and its README have it.

Here: forget prompts, one anchor of each and retain prompts, with states paired as in `uce`; one number of
repetitions for all concepts, and no detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.baselines import uce
from benchmarks.baselines.task import Task
from benchmarks.baselines.trainer import Watch

TITLE = "RECE (arXiv 2407.12383)"


@dataclass(frozen=True)
class Settings(uce.Settings):
    """What is published, but for what docs/baselines.md says; UCE's are those of every edit.

    Attributes:
        iterations: how often states are derived and erased after the first edit.
        regularisation: λ of the derivation.
    """

    preserve_scale: float = 0.1
    damping: float = 0.1
    iterations: int = 1
    regularisation: float = 1e-3


def derived_states(
    base: Mapping[str, torch.Tensor],
    edited: Mapping[str, torch.Tensor],
    states: torch.Tensor,
    regularisation: float,
) -> torch.Tensor:
    """(N, in) what the edited layers map to where the base's map states (N, in), as nearly as can be.

    Args:
        base: (out, in) weights by layer.
        edited: the same layers'.
        regularisation: λ.
    """
    width = states.shape[1]
    inner = regularisation * torch.eye(width, dtype=states.dtype, device=states.device)
    outer = torch.zeros_like(inner)
    for name, weight in edited.items():
        inner = inner + weight.T @ weight
        outer = outer + weight.T @ base[name]
    return torch.linalg.solve(inner, outer @ states.T).T


def erase(task: Task, settings: Settings, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Leave the adapter on the task's network; returns facts for results.json."""
    base = uce.weights_to_edit(task.denoiser, settings.target_modules)
    states = uce.edited_states(task, settings, seed)
    edited = uce.edit(base, states, settings)
    for _ in range(settings.iterations):
        derived = derived_states(base, edited, states.erased, settings.regularisation)
        edited = uce.edit(edited, states._replace(erased=derived), settings)
    error = uce.leave(task.denoiser, base, edited, settings.tolerance)
    if watch:
        watch(1)
    return {"iterations": 1 + settings.iterations, "images": 0, "relative_error": error}
