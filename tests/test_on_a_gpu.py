"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train_unlearn_lora as script

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SAVING = {"offload_models": True, "offload_trajectories": True}
Make = Callable[..., argparse.Namespace]


@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.5, "replay_iterations": 1}, {"advantage": "ddpo"}],
    ids=["defaults", "critic", "ddpo"],
)
def test_what_waits_in_main_memory_changes_nothing_but_rounding(
    options: dict[str, Any], arguments: Make, tmp_path: Path
) -> None:
    made = []
    for name, saving in (("plain", {}), ("saving", SAVING)):
        args = arguments(
            output_dir=tmp_path / name,
            validation_steps=1,
            num_validation_images=2,
            evaluation_seeds=[0],
            **options,
            **saving,
        )
        parts = script.prepare(args)
        script.train(args, *parts)
        backbone, teacher = parts[1].backbone, parts[1].teacher
        places = {
            next(module.parameters()).device.type
            for module in (backbone.vae, *backbone.text_encoders, teacher.model)
        }
        assert places == {"cpu" if saving else "cuda"} and backbone.device.type == "cuda"
        made.append(load_file(tmp_path / name / "pytorch_lora_weights.safetensors"))
    deviation = torch.cat([(made[1][name] - tensor).flatten() for name, tensor in made[0].items()]).abs()
    assert deviation.mean() < 1e-3


@pytest.mark.parametrize("options", [{"load_in_8bit": True}, {"load_in_4bit": True}], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_quantised_base_is_trained_on(options: dict[str, Any], precision: str, arguments: Make) -> None:
    args = arguments(
        mixed_precision=precision, gradient_checkpointing=True, evaluation_seeds=[0], **options, **SAVING
    )
    parts = script.prepare(args)
    results = script.train(args, *parts)
    trained = [p for p in parts[1].pipe.unet.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32} and all(torch.isfinite(p).all() for p in trained)
    assert results["training"]["first_ratio_deviation"] == 0


def test_too_little_memory_is_a_sentence(arguments: Make, capsys: pytest.CaptureFixture[str]) -> None:
    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(1, device="cuda")
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2e6) / free))
    try:
        with pytest.raises(SystemExit) as caught:
            script.main(arguments())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del held
    assert caught.value.code == 1 and "there is not enough GPU memory; try" in capsys.readouterr().err
