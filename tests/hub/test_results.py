"""What a file of results may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.flags import IMAGE_SEED
from hub.results import read_results


@pytest.mark.parametrize("seed", [IMAGE_SEED.at_least, -1, 0, IMAGE_SEED.at_most])
def test_every_seed_that_an_evaluation_takes_can_be_read(seed: int, tmp_path: Path) -> None:
    shown = [{"prompt": "a cat", "index": 0, "seed": seed, "forget": True}]
    (tmp_path / "results.json").write_text(json.dumps({"shown": shown, "seeds": [seed]}))
    assert read_results(tmp_path)["shown"] == shown


@pytest.mark.parametrize("seed", [-(10**30), 10**30])
def test_a_seed_beyond_all_seeds_is_refused(seed: int, tmp_path: Path) -> None:
    shown = [{"prompt": "a cat", "index": 0, "seed": seed, "forget": True}]
    (tmp_path / "results.json").write_text(json.dumps({"shown": shown}))
    with pytest.raises(ValueError, match="seed"):
        read_results(tmp_path)
