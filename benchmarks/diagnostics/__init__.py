"""What is measured at frozen weights: `python -m benchmarks.diagnostics gradients`, `... critics`, `...
ceiling`."""

from __future__ import annotations

from pathlib import Path


def quiet_arguments(concept: str, seed: int, output_dir: Path) -> list[str]:
    """The training script's arguments for building everything and training nothing: no tracker, no
    evaluation, and a directory that is never made."""
    given = ["--concept", concept, "--seed", str(seed), "--report_to", "none"]
    return [*given, "--output_dir", str(output_dir / "none"), "--evaluation_seeds"]
