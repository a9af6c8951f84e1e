"""The text that would undo the most: adversarial training in the space of the text encoder's states.

What was erased from the words that it was asked in is found again behind others, since the base still draws
the concept for text states that lie near the prompt's. Training against the worst of them is the min-max
problem of adversarial training (Goodfellow et al., 2015, arXiv 1412.6572; for unlearning diffusion models
AdvUnlearn, Zhang et al., 2024, arXiv 2405.15234, which searches tokens where this takes one step in the
states).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def worst_case(
    states: torch.Tensor, gradient: torch.Tensor, apart: torch.Tensor, radius: float
) -> torch.Tensor:
    """argmax of a loss within a ball around each prompt's text states, to first order: one step along its
    gradient, to the edge.

    The ball's radius is a share of the base's way from prompt to anchor, so that it means the same in every
    text encoder's units, and other concepts, of which the anchor is among the nearest, stay outside. What is
    zero under the prompt, and the same under its anchor, is padding, which no text changes: a T5 that is left
    out, or CLIP's states widened to T5's. It stays.

    Args:
        states: (B, L, E) text states.
        gradient: (B, L, E), of the loss in them; of any scale. Where it is zero, nothing moves.
        apart: (B, L, E), from the base's text states of each prompt to those of what is to be drawn instead.
        radius: in units of the length of that (L2 over tokens and features).

    Returns:
        (B, L, E), float32, without gradient.
    """
    states, apart = states.detach().float(), apart.float()
    reach = radius * apart.flatten(1).norm(dim=1, keepdim=True)
    said = (states != 0) | (apart != 0)
    return states + (reach * F.normalize((gradient.float() * said).flatten(1), dim=1)).view_as(states)
