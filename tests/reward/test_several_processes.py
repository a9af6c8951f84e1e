from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from two_processes import run_in_two_processes

from reward.train import main, parse_config


def test_two_processes_share_the_drawing_and_the_batch(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na tree\n")
    arguments = [
        *(
            "--pretrained_model_name_or_path",
            str(tiny_pipeline_dir),
            "--prompts",
            str(tmp_path / "prompts.txt"),
        ),
        *(
            "--num_images",
            "14",
            "--num_inference_steps",
            "2",
            "--sample_batch_size",
            "4",
            "--max_train_steps",
            "6",
            "--train_batch_size",
            "8",
        ),
        *("--width", "8", "--checkpointing_steps", "4", "--output_dir"),
    ]
    run_in_two_processes(lambda given: main(parse_config(given)), [*arguments, str(tmp_path / "two")])
    main(parse_config([*arguments, str(tmp_path / "one")]))

    one, two = (next((tmp_path / name / "latents").iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    for path in sorted(one.glob("*.safetensors")):
        assert path.read_bytes() == (two / path.name).read_bytes()
    alone, shared = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # A gradient that is hardly more than rounding may have either sign, and Adam takes a whole step by it: a
    # few numbers may be off by twice six steps, most by next to nothing.
    off = torch.cat([(alone[k].float() - shared[k].float()).flatten() for k in alone]).abs()
    assert off.max() <= 2 * 6 * 2e-3 and off.quantile(0.95) < 2e-4
    assert (tmp_path / "two" / "checkpoint-4" / "state.json").is_file()
