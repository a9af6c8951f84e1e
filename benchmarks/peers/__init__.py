"""A peer in the same run: DDPO as TRL trains it, on the same pipeline, prompts, reward and seeds."""
