"""The training script's arguments for a benchmark that builds everything and trains nothing."""

from __future__ import annotations

from pathlib import Path


def quiet_arguments(concept: str, seed: int, output_dir: Path) -> list[str]:
    """No tracker, no final figures, and a directory that is never made."""
    given = {
        "--concept": concept,
        "--seed": str(seed),
        "--report_to": "none",
        "--output_dir": str(output_dir / "none"),
    }
    return [*(part for pair in given.items() for part in pair), "--evaluation_seeds"]
