"""The reward: how near an embedding is to the anchors, and how far from the target.

Cosines rather than a probability: where the base draws the concept with certainty a probability is flat, a
margin is not. The anchors count twice as much as the target, because a margin alone can be had by drawing
nothing that anyone would recognise: away from the target, near no anchor. Nor is anything gained by a target
cosine below the one its anchors have by nature: a tree in another style is still a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from reward.spec import ConceptSpec
from reward.teacher import Teacher

ANCHOR_WEIGHT = 2.0
TEMPERATURE = 0.05
"""Cosine units over which several anchors count as one: small is the nearest anchor, large their mean."""


@dataclass(frozen=True)
class ConceptReward:
    """The text side of the reward, one row for each forget prompt.

    Attributes:
        target: (N, D), the embedding of what must disappear.
        anchors: (N, K, D), embeddings of what may appear instead, padded by repetition.
    """

    target: torch.Tensor
    anchors: torch.Tensor

    @classmethod
    def from_spec(cls, spec: ConceptSpec, teacher: Teacher) -> ConceptReward:
        """The target of a forget prompt is the prompt itself: it differs from its anchors by the concept alone."""
        texts = list(dict.fromkeys(text for row in spec.anchors for text in row))
        index = {text: i for i, text in enumerate(texts)}
        embeds = teacher.encode_text(texts)
        anchors = torch.stack([embeds[[index[text] for text in row]] for row in spec.padded_anchors()])
        return cls(teacher.encode_text(spec.forget_prompts), anchors)

    def margin(self, embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B, S, D) embeddings of images of the forget prompts `rows` (B,) -> reward (B, S), rising as an anchor replaces the target."""
        target = torch.einsum("bsd,bd->bs", embeddings, self.target[rows])
        anchors = torch.einsum("bsd,bkd->bsk", embeddings, self.anchors[rows])
        nearest = TEMPERATURE * (torch.logsumexp(anchors / TEMPERATURE, dim=-1) - math.log(anchors.shape[-1]))
        natural = torch.einsum("bd,bkd->bk", self.target[rows], self.anchors[rows]).mean(-1, keepdim=True)
        return ANCHOR_WEIGHT * nearest - torch.maximum(target, natural)

    def forgotten(self, embeddings: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, D) embeddings of finished images -> (B,) bool, whether some anchor is nearer than the target; that anchor's cosine and column."""
        target = torch.einsum("bd,bd->b", embeddings, self.target[rows])
        nearest, column = torch.einsum("bd,bkd->bk", embeddings, self.anchors[rows]).max(-1)
        return nearest > target, nearest, column
