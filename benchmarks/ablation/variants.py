"""The variants, as flags of the training script. All else is its default."""

from __future__ import annotations

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "with a critic": ["--gamma", "0.5"],
    "critic alone": ["--gamma", "1", "--reward_signal", "terminal"],
    "blind critic alone": ["--gamma", "1", "--reward_signal", "terminal", "--critic_type", "timestep_blind"],
    "clean critic alone": ["--gamma", "1", "--reward_signal", "terminal", "--critic_type", "clean_only"],
    "no reward": ["--advantage", "ddpo", "--advantage_clip", "0"],
    "no anchor KL": ["--anchor_kl_coef", "0"],
    "no retain KL": ["--kl_coef", "0"],
    "no fidelity": ["--fidelity_weight", "1"],
    "all timesteps": ["--train_timestep_fraction", "1"],
    "replay": ["--replay_iterations", "2"],
    "likelihood ratio": ["--advantage", "step", "--terminal_weight", "0"],
    "step": ["--advantage", "step"],
    "td": ["--advantage", "td"],
    "gae": ["--advantage", "gae"],
    "mc": ["--advantage", "mc"],
    "ddpo": ["--advantage", "ddpo"],
    "plain ddpo": ["--advantage", "ddpo", "--anchor_kl_coef", "0"],
}
"""A learned critic is asked from "with a critic" to "clean critic alone" and from "likelihood ratio" to "mc"."""
