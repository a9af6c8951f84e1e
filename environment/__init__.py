"""The environment of the decision process: base model, prompts and reward, put together from names on a command line."""
