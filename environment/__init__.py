"""The environment of the decision process: base, prompts and reward of one concept."""
