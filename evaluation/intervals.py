"""95 % intervals of metrics, [low, high] in the metric's own unit. Pure functions, deterministic.

Of one adapter: the images of a prompt are alike, so they are not an independent sample. `bootstrap` resamples
in two stages, prompts with replacement and then, within each prompt drawn, its images with replacement
(Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8); `scipy.stats.bootstrap` has
one stage. It generalises to prompts like these and to other noise; with a single prompt, to other noise
alone. It errs on the wide side if the prompts do not differ. A seed is no cluster of its own: the noise of an
image comes from prompt and seed together (`pipelines.generate.image_seed`), so that two prompts share none.

If all images agree, a bootstrap has nothing to resample and its interval would be a point.
`proportion_interval` is therefore never narrower than Wilson's interval for the same number of independent
images (Wilson, JASA 22, 1927; Brown, Cai & DasGupta, Statistical Science 16, 2001): 24 images of 24 are
[86.2, 100] and not [100, 100].

Over a few training runs: Student's t (`t_interval`). A bootstrap of three values cannot leave their range and
covers far too little.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, t

Interval = tuple[float, float]

RESAMPLES = 2000
_CHUNK = 4_000_000  # numbers resampled at a time, which bounds the memory
Z_975 = float(norm.ppf(0.975))


def bootstrap(
    scores: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the weighted mean over prompts of each prompt's mean over images (see the
    module).

    Args:
        scores: for each prompt, the scores of its images, at least one.
        weights: of the prompts. None weighs them equally.

    Raises:
        ValueError: no prompts.
    """
    if not scores:
        raise ValueError("no prompts to resample")
    counts = np.array([len(row) for row in scores])
    table = np.zeros((len(scores), counts.max()))
    for row, values in zip(table, scores, strict=True):
        row[: len(values)] = values
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    generator, means = np.random.default_rng(seed), []
    chunk = max(1, _CHUNK // table.size)
    for start in range(0, resamples, chunk):
        prompts = generator.integers(len(scores), size=(min(chunk, resamples - start), len(scores)))
        drawn = counts[prompts][..., None]
        images = (generator.random((*prompts.shape, table.shape[1])) * drawn).astype(int)
        kept = np.arange(table.shape[1]) < drawn
        of_prompts = (table[prompts[..., None], images] * kept).sum(-1) / drawn[..., 0]
        means.append((weight[prompts] * of_prompts).sum(-1) / weight[prompts].sum(-1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def wilson(share: float, count: int) -> Interval:
    """Wilson's interval of a fraction in [0, 1] of `count` independent images; [0, 1] for none.

    The fraction may be a weighted mean. `scipy.stats.binomtest` takes whole numbers of successes alone.
    """
    if count == 0:
        return 0.0, 1.0
    z2 = Z_975**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_975 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion_interval(
    scores: Sequence[Sequence[float]], weights: Sequence[float] | None = None, resamples: int = RESAMPLES
) -> Interval:
    """In percent: `bootstrap`, widened to Wilson's interval for the same number of independent images.
    Arguments are `bootstrap`'s, scores in [0, 1]."""
    weight = [1.0] * len(scores) if weights is None else weights
    share = sum(w * statistics.fmean(row) for w, row in zip(weight, scores, strict=True)) / sum(weight)
    low, high = bootstrap(scores, weights, resamples)
    least, most = wilson(min(1.0, max(0.0, share)), sum(map(len, scores)))
    return 100 * min(low, least), 100 * max(high, most)


def t_interval(values: Sequence[float], bounds: Interval = (-math.inf, math.inf)) -> Interval | None:
    """Student's t-interval of the mean, clipped to the bounds; None for a single value."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return max(bounds[0], mean - half), min(bounds[1], mean + half)
