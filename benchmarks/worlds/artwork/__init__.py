"""Open-licensed emoji sets as styles: `python -m benchmarks.worlds.artwork` makes their pictures."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""What has been built of them for two cores: pipeline, judge, CLIP and reward predictor."""
