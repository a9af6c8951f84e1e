"""The variants, as flags of the training script. All else is its default."""

from __future__ import annotations

DDPO = ["--advantage", "ddpo", "--critic_warmup_rollouts", "32"]

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "ddpo": DDPO,
    "td": ["--advantage", "td"],
    "gae": ["--advantage", "gae"],
    "mc": ["--advantage", "mc"],
    "mc, terminal reward": ["--advantage", "mc", "--reward_signal", "terminal"],
    "no finished image": ["--terminal_weight", "0"],
    "no critic": ["--critic_type", "none", "--critic_warmup_rollouts", "32"],
    "blind critic": ["--critic_type", "timestep_blind"],
    "clean critic": ["--critic_type", "clean_only"],
    "replay": ["--replay_iterations", "2"],
    "all timesteps": ["--train_timestep_fraction", "1"],
    "no anchor KL": ["--anchor_kl_coef", "0"],
    "no retain KL": ["--kl_coef", "0"],
    "no fidelity": ["--fidelity_weight", "1"],
}
"""Those without a critic need no rollouts to warm one up: they get just enough to calibrate the reward."""
