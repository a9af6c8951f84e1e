"""The bundled world, drawn from seeds: `python -m benchmarks.worlds.canvas` builds it."""
