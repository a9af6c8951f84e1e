"""The reward: how near an embedding is to the anchors, and how far from the target.

Cosines rather than a probability: where the base draws the concept with certainty a probability is flat, a
margin is not. The anchors, which say the same without the concept, count twice as much as the target:
fidelity to the rest of the prompt. A margin alone can be had by drawing nothing that anyone would recognise:
away from the target, near no anchor. Nor is anything gained by a target cosine below the one that images of
its anchors
have by nature: a tree in another style is still a tree.

Cosines of one CLIP are not those of another (a good match is 0.85 here and 0.3 there), so whatever is
compared with a cosine is measured on the base's own images first: `calibrated`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from reward.concept import ConceptSpec
from reward.teacher import Teacher

FIDELITY_WEIGHT = 2.0
SHARPNESS = 0.1
"""Share of the contrast over which several anchors count as one: small is the nearest anchor, large their
mean."""
MIN_CONTRAST = 0.1
"""Share of the contrast between the texts that the contrast between the base's images is taken to have at
least."""


@dataclass(frozen=True)
class Exemplars:
    """Images of the concept as a target, beside its text or in its place.

    Attributes:
        embedding: (D,), unit length, the mean of the images' embeddings.
        scale: puts a cosine with it on the scale of the text's cosines, together with `shift`.
        text_share: how much the text counts beside the images, in [0, 1].
    """

    embedding: torch.Tensor
    scale: float = 1.0
    shift: float = 0.0
    text_share: float = 0.0

    @classmethod
    def from_images(cls, embeddings: torch.Tensor, text_share: float) -> Exemplars:
        """(N, D) embeddings of images that show the concept."""
        return cls(F.normalize(embeddings.mean(0), dim=0), text_share=text_share)


@dataclass(frozen=True)
class ConceptReward:
    """The text side of the reward, one row for each forget prompt.

    Attributes:
        target: (N, D), the embedding of what must disappear.
        anchors: (N, K, D), embeddings of what may appear instead, padded by repetition.
        natural: (N,), the target's score on images of the anchors.
        contrast: how much higher it is on images of the concept, mean over the rows; the unit of every
            threshold.
        from_concept, to_anchors: the reward of images of the concept and of images of the anchors, mean over
            the rows.
        fidelity_weight: how much the anchors count for one of the target.
        exemplars: images that stand in for the target's text or join it.
    """

    target: torch.Tensor
    anchors: torch.Tensor
    natural: torch.Tensor
    contrast: float
    from_concept: float = 0.0
    to_anchors: float = 0.0
    fidelity_weight: float = FIDELITY_WEIGHT
    exemplars: Exemplars | None = None

    @classmethod
    def from_embeddings(
        cls,
        target: torch.Tensor,
        anchors: torch.Tensor,
        fidelity_weight: float = FIDELITY_WEIGHT,
        exemplars: Exemplars | None = None,
    ) -> ConceptReward:
        """Not yet calibrated: the texts' embeddings stand for the images they describe."""
        natural = torch.einsum("nd,nkd->nk", target, anchors).mean(-1)
        contrast = max(1 - natural.mean().item(), 1e-6)
        return cls(target, anchors, natural, contrast, fidelity_weight=fidelity_weight, exemplars=exemplars)

    @classmethod
    def from_spec(
        cls,
        spec: ConceptSpec,
        teacher: Teacher,
        fidelity_weight: float = FIDELITY_WEIGHT,
        exemplars: Exemplars | None = None,
    ) -> ConceptReward:
        """Targets and anchors as the teacher reads them."""
        texts = list(dict.fromkeys(text for row in spec.anchors for text in row))
        index = {text: i for i, text in enumerate(texts)}
        embeds = teacher.encode_text(texts)
        anchors = torch.stack([embeds[[index[text] for text in row]] for row in spec.padded_anchors()])
        return cls.from_embeddings(
            teacher.encode_targets(spec.forget_prompts), anchors, fidelity_weight, exemplars
        )

    def calibrated(
        self,
        concept_images: torch.Tensor,
        rows: torch.Tensor,
        other_images: torch.Tensor,
        is_anchor: torch.Tensor,
    ) -> ConceptReward:
        """The same reward on the scale of the base's own images.

        Args:
            concept_images: (B, D) embeddings of what the base draws for forget prompts.
            rows: (B,) which prompts these are.
            other_images: (M, D) embeddings of what it draws for other prompts.
            is_anchor: (N, M) bool, whether an image was drawn for an anchor of the row. A row without any
                takes all of them.
        """
        reward = self
        if self.exemplars is not None:
            reward = replace(self, exemplars=self._fitted(concept_images, rows, other_images))
        weights = torch.where(is_anchor.any(1, keepdim=True), is_anchor, True).float()
        every_row = torch.arange(len(self.target), device=rows.device).repeat_interleave(len(other_images))
        every_image = other_images.repeat(len(self.target), 1)[:, None]
        scores = reward.target_score(every_image, every_row).reshape(len(self.target), -1)
        natural = (scores * weights).sum(1) / weights.sum(1)
        contrast = (
            (reward.target_score(concept_images[:, None], rows).squeeze(1) - natural[rows]).mean().item()
        )
        # A base that does not draw the concept has no contrast to speak of; thresholds must not shrink to
        # nothing with it.
        reward = replace(reward, natural=natural, contrast=max(contrast, MIN_CONTRAST * self.contrast))
        from_concept = reward.margin(concept_images[:, None], rows).mean().item()
        margins = reward.margin(every_image, every_row).reshape(len(self.target), -1)
        # Where no image of an anchor is at hand: the target falls by the contrast, and an anchor rises by as
        # much.
        to_anchors = (
            margins[is_anchor].mean().item()
            if is_anchor.any()
            else from_concept + (1 + self.fidelity_weight) * reward.contrast
        )
        return replace(reward, from_concept=from_concept, to_anchors=to_anchors)

    def shortfall(self, margins: torch.Tensor) -> torch.Tensor:
        """Rewards of finished images (B,) -> the share in [0, 1] of the way from images of the concept to
        images of its anchors that is left."""
        way = max(self.to_anchors - self.from_concept, MIN_CONTRAST * self.contrast)
        return ((self.to_anchors - margins) / way).clamp(0, 1)

    def _fitted(
        self, concept_images: torch.Tensor, rows: torch.Tensor, other_images: torch.Tensor
    ) -> Exemplars:
        """The exemplars on the scale of the text: equal means on images of the concept, and equal means on
        other images."""
        assert self.exemplars is not None
        text = [
            (concept_images * self.target[rows]).sum(-1).mean().item(),
            (other_images @ self.target.T).mean().item(),
        ]
        image = [
            (concept_images @ self.exemplars.embedding).mean().item(),
            (other_images @ self.exemplars.embedding).mean().item(),
        ]
        apart = image[0] - image[1]
        scale = (text[0] - text[1]) / apart if apart > 1e-3 else 1.0
        return replace(self.exemplars, scale=scale, shift=text[1] - scale * image[1])

    def target_score(self, embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B, S, D) embeddings of images of the forget prompts `rows` (B,) -> how much they show the
        concept (B, S)."""
        score = torch.einsum("bsd,bd->bs", embeddings, self.target[rows])
        if self.exemplars is None:
            return score
        images = self.exemplars.scale * (embeddings @ self.exemplars.embedding) + self.exemplars.shift
        return self.exemplars.text_share * score + (1 - self.exemplars.text_share) * images

    def margin(self, embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B, S, D) embeddings of images of the forget prompts `rows` (B,) -> reward (B, S), rising as an
        anchor replaces the target."""
        anchors = torch.einsum("bsd,bkd->bsk", embeddings, self.anchors[rows])
        temperature = SHARPNESS * self.contrast
        nearest = temperature * (torch.logsumexp(anchors / temperature, dim=-1) - math.log(anchors.shape[-1]))
        return self.fidelity_weight * nearest - torch.maximum(
            self.target_score(embeddings, rows), self.natural[rows, None]
        )

    def forgotten(
        self, embeddings: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, D) embeddings of finished images -> (B,) bool, whether some anchor is nearer than the
        target; that anchor's cosine and column."""
        target = self.target_score(embeddings[:, None], rows).squeeze(1)
        nearest, column = torch.einsum("bd,bkd->bk", embeddings, self.anchors[rows]).max(-1)
        return nearest > target, nearest, column
