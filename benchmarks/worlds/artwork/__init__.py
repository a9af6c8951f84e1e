"""Open-licensed emoji sets as styles: `python -m benchmarks.worlds.artwork` makes their pictures."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""What has been built of them for two cores: pipeline, judge, CLIP and reward predictor."""
GUIDANCE = 3.0
"""The guidance scale that the pipeline draws best with: at its class's 7.5 it draws worse."""
