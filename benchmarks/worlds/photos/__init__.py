"""CIFAR-10: `python -m benchmarks.worlds.photos` builds a base of photographs."""
