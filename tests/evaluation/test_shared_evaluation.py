"""Two real processes, forked so that they need not import everything again."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

from accelerate.state import AcceleratorState

from evaluation.__main__ import main, parse_args


def work(rank: int, port: int, arguments: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    main(parse_args(arguments))
    assert AcceleratorState().num_processes == 2


def test_two_processes_share_the_shards_and_one_reports(adapter_dir: Path, tiny_pipeline_dir: Path, tiny_judge_dir: Path, tmp_path: Path) -> None:
    arguments = ["--adapter", str(adapter_dir), "--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    arguments += ["--judge_name_or_path", str(tiny_judge_dir), "--num_inference_steps", "1", "--seeds", *map(str, range(20)), "--output_dir"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(rank, port, [*arguments, str(tmp_path / "two")])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    main(parse_args([*arguments, str(tmp_path / "one")]))

    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["images_per_side"] == 80  # two shards
    assert {**one, "evaluation_seconds": 0} == {**two, "evaluation_seconds": 0}
    for path in (tmp_path / "one" / "images").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
