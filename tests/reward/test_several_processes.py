"""Two real processes, forked so that they need not import everything again."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from reward.train import main, parse_args


def work(rank: int, port: int, arguments: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)
    main(parse_args(arguments))
    assert AcceleratorState().num_processes == 2


def test_two_processes_share_the_drawing_and_the_batch(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na tree\n")
    arguments = [
        *("--pretrained_model_name_or_path", str(tiny_pipeline_dir), "--prompts", str(tmp_path / "prompts.txt")),
        *("--num_images", "14", "--num_inference_steps", "2", "--sample_batch_size", "4", "--max_train_steps", "6", "--train_batch_size", "8"),
        *("--width", "8", "--checkpointing_steps", "4", "--output_dir"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(rank, port, [*arguments, str(tmp_path / "two")])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    main(parse_args([*arguments, str(tmp_path / "one")]))

    one, two = (next((tmp_path / name / "latents").iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    for path in sorted(one.glob("*.safetensors")):
        assert path.read_bytes() == (two / path.name).read_bytes()
    alone, shared = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(alone[k].float(), shared[k].float(), atol=2e-3) for k in alone)
    assert (tmp_path / "two" / "checkpoint-4" / "state.json").is_file()
