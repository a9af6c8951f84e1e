"""Settings that go together: `--preset NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "advantage": "td",
        "anchor_kl_coef": 0.0,
        "adversarial_radius": 0.0,
        "replay_iterations": 1,
        "cooldown_updates": 0,
        "train_text_encoder": False,
        "lr_scheduler": "constant",
        "max_train_iterations": 600,
    },
}
"""Values in place of the defaults; flags and a file of settings win.

paper: arXiv 2601.03213 as it describes itself. The noise-conditioned reward and a timestep-aware critic
credit each step, the clipped policy gradient does the rest, and trajectories are used twice. No gradient goes
through the reward, nothing says what to draw instead, and the UNet alone is adapted.
"""
