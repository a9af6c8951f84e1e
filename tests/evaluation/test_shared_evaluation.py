from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from two_processes import run_in_two_processes

from evaluation.__main__ import main, parse_config


def test_two_processes_share_the_shards_and_one_reports(
    adapter_dir: Path, tiny_pipeline_dir: Path, tiny_judge_dir: Path, tmp_path: Path
) -> None:
    arguments = ["--adapter", str(adapter_dir), "--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    arguments += [
        "--judge_name_or_path",
        str(tiny_judge_dir),
        "--num_inference_steps",
        "1",
        "--seeds",
        *map(str, range(20)),
        "--output_dir",
    ]
    run_in_two_processes(lambda given: main(parse_config(given)), [*arguments, str(tmp_path / "two")])
    main(parse_config([*arguments, str(tmp_path / "one")]))

    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["images_per_side"] == 80  # two shards
    assert_same_results(one, two)
    for path in (tmp_path / "one" / "images").rglob("*.png"):
        alone, shared = (
            np.asarray(Image.open(p), dtype=int)
            for p in (path, tmp_path / "two" / path.relative_to(tmp_path / "one"))
        )
        assert (
            np.abs(alone - shared).max() <= 1
        )  # a grey level, where a processor rounds by how many threads share the work


def assert_same_results(one: Any, two: Any, name: str = "") -> None:
    """The same keys and texts; numbers up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key in one.keys() - {"evaluation_seconds"}:
            assert_same_results(one[key], two[key], f"{name}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), name
        for i, pair in enumerate(zip(one, two, strict=True)):
            assert_same_results(*pair, f"{name}[{i}]")
    else:
        assert one == (pytest.approx(two, rel=1e-4, abs=1e-6) if isinstance(one, float) else two), name
