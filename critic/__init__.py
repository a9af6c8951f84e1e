"""The timestep-aware critic: values of noisy states, and the advantages made from them."""
