"""The variants, as flags of the training script. All else is its default.

The KL to the anchors erases concepts by itself, and hides what a reward or a critic does; "plain" variants,
and "no anchor KL", are without it. What is to be shown alone adapts the UNet alone, and
learns at a constant rate: one that falls with the shortfall is a reward too. The KL's worst case around the
prompts is against words that are searched for, which no judgement here tries; other variants than the default
are without that.
"""

from __future__ import annotations

COLD = ["--no-train_text_encoder", "--lr_scheduler", "constant"]
PLAIN = ["--anchor_kl_coef", "0", *COLD]
AT_THE_PROMPT = ["--adversarial_radius", "0"]

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "no adversary": AT_THE_PROMPT,
    "no anchor KL": PLAIN,
    "no reward": [
        *("--advantage", "ddpo", "--advantage_clip", "0", "--no-weigh_anchor_kl"),
        *COLD,
        *AT_THE_PROMPT,
    ],
    "no retain KL": ["--kl_coef", "0", *AT_THE_PROMPT],
    "no fidelity": ["--fidelity_weight", "1", *AT_THE_PROMPT],
    "all timesteps": ["--train_timestep_fraction", "1", *AT_THE_PROMPT],
    "replay": ["--replay_iterations", "2", *AT_THE_PROMPT],
    "with a critic": ["--gamma", "0.5", *AT_THE_PROMPT],
    "plain critic": ["--gamma", "1", "--reward_signal", "terminal", *PLAIN],
    "plain blind critic": [
        "--gamma",
        "1",
        "--reward_signal",
        "terminal",
        "--critic_type",
        "timestep_blind",
        *PLAIN,
    ],
    "plain clean critic": [
        "--gamma",
        "1",
        "--reward_signal",
        "terminal",
        "--critic_type",
        "clean_only",
        *PLAIN,
    ],
    "plain likelihood ratio": ["--advantage", "step", "--terminal_weight", "0", *PLAIN],
    "plain step": ["--advantage", "step", *PLAIN],
    "plain td": ["--advantage", "td", *PLAIN],
    "plain gae": ["--advantage", "gae", *PLAIN],
    "plain mc": ["--advantage", "mc", *PLAIN],
    "plain ddpo": ["--advantage", "ddpo", *PLAIN],
}
"""A learned critic is asked from "with a critic" to "plain mc"."""
