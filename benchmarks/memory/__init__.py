"""How much memory training takes, by flags: computed from the configs, and measured on a GPU under a cap."""
