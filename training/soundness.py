"""Whether the metrics of an iteration are finite, and if not, who is to be looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping


def nonfinite_cause(metrics: Mapping[str, float]) -> str:
    """The first cause of a metric that is not finite, and what to do; an empty text if all are.

    Args:
        metrics: of an iteration; `contrast` is that of the images, `noisy_reward` the mean over the noisy
            states, all others come from the teacher.
    """
    wrong = {name for name, value in metrics.items() if not math.isfinite(value)}
    if not wrong:
        return ""
    if "contrast" in wrong:
        return "the images are NaN or infinite (with --mixed_precision fp16, take bf16, or another VAE with --pretrained_vae_model_name_or_path)"
    if wrong == {"noisy_reward"}:
        return (
            "the reward predictor's answers are NaN or infinite (make it anew with `python -m reward.train`)"
        )
    return (
        "the teacher's answers are NaN or infinite (take another --clip_model or --classifier_name_or_path)"
    )
