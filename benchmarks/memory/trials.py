"""The flags that are recommended for a card, and what is measured of them and beside them."""

from __future__ import annotations

BF16 = ["--mixed_precision", "bf16"]
SPARING = ["--gradient_checkpointing", "--offload_models", "--offload_trajectories"]
FOUR_BIT = ["--load_in_4bit"]
CLIPS_ALONE = ["--without_t5"]
Trial = tuple[str, int, list[str]]
RECOMMENDED: list[Trial] = [
    ("sd15", 6, [*BF16, *SPARING, "--train_batch_size", "4"]),
    ("sd15", 8, [*BF16, *SPARING, "--train_batch_size", "8"]),
    ("sd15", 12, [*BF16, "--gradient_checkpointing", "--train_batch_size", "8"]),
    ("sd15", 16, [*BF16, "--gradient_checkpointing", "--train_batch_size", "16"]),
    ("sd15", 24, [*BF16, "--train_batch_size", "8"]),
    ("sdxl", 8, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "2"]),
    ("sdxl", 12, [*BF16, *SPARING, "--train_batch_size", "2"]),
    ("sdxl", 16, [*BF16, *SPARING, "--train_batch_size", "4"]),
    ("sdxl", 24, [*BF16, "--gradient_checkpointing", "--train_batch_size", "8"]),
    (
        "sd35-medium-without-t5",
        8,
        [*BF16, *SPARING, *CLIPS_ALONE, *FOUR_BIT, "--train_batch_size", "2"],
    ),
    ("sd35-medium-without-t5", 12, [*BF16, *SPARING, *CLIPS_ALONE, "--train_batch_size", "2"]),
    ("sd35-medium-without-t5", 16, [*BF16, *SPARING, *CLIPS_ALONE, "--train_batch_size", "4"]),
    ("sd35-medium", 24, [*BF16, *SPARING, "--train_batch_size", "8"]),
    ("flux-dev", 24, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "4"]),
    ("flux-dev", 48, [*BF16, *SPARING, "--train_batch_size", "6"]),
    ("flux-dev", 80, [*BF16, "--gradient_checkpointing", "--train_batch_size", "8"]),
]
"""Base, GB of the card, and flags that leave a tenth of the peak and a GB of it to what is not computed."""
TRIALS: list[Trial] = [
    *RECOMMENDED,
    ("sd15", 8, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "8"]),
    ("sd15", 24, [*BF16, "--use_8bit_adam", "--train_batch_size", "8"]),
    ("sdxl", 12, [*BF16, *SPARING, *FOUR_BIT, "--train_batch_size", "4"]),
    ("sdxl", 16, [*BF16, *SPARING, "--load_in_8bit", "--train_batch_size", "4"]),
]
"""What is measured: these, and what else can be had of the flags."""
