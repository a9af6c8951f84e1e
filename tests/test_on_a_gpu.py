"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train_unlearn_lora as script
from training.config import RunConfig
from training.setup import prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SAVING = {"offload_models": True, "offload_trajectories": True}
Make = Callable[..., RunConfig]


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
        config = arguments(
            output_dir=tmp_path / name, validation_steps=1, evaluation_seeds=[0], **options, **saving
        )
        run = prepare(config)
        script.train(run, config)
        backbone, teacher = run.env.backbone, run.env.teacher
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
def test_a_quantised_base_is_trained_on(
    options: dict[str, Any], precision: str, arguments: Make, tmp_path: Path
) -> None:
    config = arguments(
        mixed_precision=precision, gradient_checkpointing=True, evaluation_seeds=[0], **options, **SAVING
    )
    run = prepare(config)
    script.train(run, config)
    trained = [p for p in run.denoiser.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32} and all(torch.isfinite(p).all() for p in trained)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
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
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1 and error.startswith("error: ") and "--mixed_precision bf16" in error
