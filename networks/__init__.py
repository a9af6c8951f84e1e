"""Building blocks that the reward predictor and the critic share: FiLM layers and checkpoint files."""
