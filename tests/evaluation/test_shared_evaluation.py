from __future__ import annotations

import json
from pathlib import Path

from two_processes import run_in_two_processes

from evaluation.__main__ import main, parse_args


def test_two_processes_share_the_shards_and_one_reports(adapter_dir: Path, tiny_pipeline_dir: Path, tiny_judge_dir: Path, tmp_path: Path) -> None:
    arguments = ["--adapter", str(adapter_dir), "--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    arguments += ["--judge_name_or_path", str(tiny_judge_dir), "--num_inference_steps", "1", "--seeds", *map(str, range(20)), "--output_dir"]
    run_in_two_processes(lambda given: main(parse_args(given)), [*arguments, str(tmp_path / "two")])
    main(parse_args([*arguments, str(tmp_path / "one")]))

    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["images_per_side"] == 80  # two shards
    assert {**one, "evaluation_seconds": 0} == {**two, "evaluation_seconds": 0}
    for path in (tmp_path / "one" / "images").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
