"""Probes of forgetting: how much of an erased concept comes back, and at what price (docs/robustness.md).

Every probe is a function `run(subject, settings) -> list[Row]` and leaves the pipeline as it found it.
"""
