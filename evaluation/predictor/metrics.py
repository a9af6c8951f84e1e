"""How well a score of noisy states predicts what the teacher says of the finished image.

N states, K concepts (texts). A scorer's embedding of a state (N, D) times the texts (K, D) are its target
scores; the teacher's embedding of the finished image times the texts are the truth. Four metrics, each for
the states of one timestep:

- *cosine*: of the two embeddings, mean over states;
- *Spearman*: rank correlation of target score and truth over the states, mean over concepts;
- *AUC*: the probability that a state whose finished image shows the concept scores above one whose image does
  not, ties counting one half, mean over concepts. An image shows the concept whose text is nearest to it, as
  the teacher sees it. A concept that all images show, or none, has no AUC and is left out;
- *Spearman within prompts*: the same among states of one prompt, for that prompt's own text. The other
  metrics can be high by knowing the prompt and nothing of the latent; this one cannot.
"""

from __future__ import annotations

import math

import torch


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks (N,) from 1 of (N,) values; equal values share their mean rank. float64."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def pearson(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of two (N,) tensors; NaN if one is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale).item() if scale > 0 else math.nan


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Rank correlation of two (N,) tensors, ties sharing their rank; NaN if one is constant."""
    return pearson(ranks(a), ranks(b))


def auc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """Area under the ROC curve of (N,) scores for (N,) bool labels by the Mann-Whitney statistic; NaN if one
    class is missing."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return math.nan
    return ((ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * others)).item()


def mean_of(values: list[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan


def foresight(embeddings: torch.Tensor, truth: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """The first three metrics of one timestep.

    Args:
        embeddings: (N, D), the scorer's of the noisy states.
        truth: (N, D), the teacher's of their finished images.
        texts: (K, D), the concepts'.

    Returns:
        auc, spearman, cosine.
    """
    target, true = embeddings @ texts.T, truth @ texts.T
    shown = true.argmax(dim=1)
    concepts = range(len(texts))
    return {
        "auc": mean_of([auc(target[:, k], shown == k) for k in concepts]),
        "spearman": mean_of([spearman(target[:, k], true[:, k]) for k in concepts]),
        "cosine": torch.cosine_similarity(embeddings, truth).mean().item(),
    }


def within_prompts(
    embeddings: torch.Tensor, truth: torch.Tensor, texts: torch.Tensor, rows: torch.Tensor
) -> float:
    """Spearman of each state's own text over the states that share it, mean over texts: a scorer that knows
    only the prompt has none.

    Args:
        texts: (P, D), the prompts'.
        rows: (N,), the prompt that each state was drawn for; prompts of fewer than three states are left out.
    """
    target, true = (embeddings * texts[rows]).sum(1), (truth * texts[rows]).sum(1)
    groups = [rows == row for row in rows.unique()]
    return mean_of([spearman(target[of], true[of]) for of in groups if of.sum() >= 3])
