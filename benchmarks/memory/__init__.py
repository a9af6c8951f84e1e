"""How much memory training takes, by flags: computed from the configs and from passes over meta tensors,
and measured on a GPU under a cap."""
