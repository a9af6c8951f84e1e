"""Open-licensed emoji sets as styles: `python -m benchmarks.worlds.artwork` makes their pictures."""
