"""The main job, once for real, as a newcomer starts it: the script from its command line to an adapter that
a stock pipeline loads. What else the script promises is in the slow tier."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import canvas

SCRIPT = Path(__file__).parents[1] / "train_unlearn_lora.py"
SHORT = """
    --concept Gogh --num_inference_steps 4 --masked_steps 1 --train_batch_size 4 --images_per_iteration 6
    --max_train_iterations 2 --cooldown_updates 0 --gradient_accumulation_steps 1 --retain_rollouts 6
    --retain_batch_size 3 --rank 2 --validation_steps 0 --num_validation_images 2 --evaluation_seeds 0
    --target_unlearning_accuracy 1.1 --max_retain_drop 10 --max_retain_kl 1e9
"""
"""A random base forgets nothing and keeps nothing: neither the stop signal nor the brake may end the run."""


@pytest.mark.usefixtures("draw_in_full")
def test_the_script_erases_a_concept_and_writes_the_adapter_and_its_proof(
    tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = {
        "--pretrained_model_name_or_path": tiny_pipeline_dir,
        "--reward_model_name_or_path": tiny_reward_dir,
        "--clip_model": f"local-dir:{canvas.CLIP}",
        "--output_dir": out,
    }
    line = [SCRIPT, *SHORT.split(), *(word for pair in given.items() for word in pair)]
    monkeypatch.setattr(sys, "argv", [str(word) for word in line])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    weights = load_file(out / "pytorch_lora_weights.safetensors")
    assert weights and all(tensor.isfinite().all() for tensor in weights.values())
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name)

    results = json.loads((out / "results.json").read_text())
    assert results["concept"] == ["Gogh"] and results["num_inference_steps"] == 30
    assert results["training"]["iterations"] == 2 and results["training"]["first_ratio_deviation"] == 0
    assert all(0 <= results[side][name] <= 100 for side in ("base", "adapter") for name in ("UA", "IRA"))
    assert len((out / "diagnostics.jsonl").read_text().splitlines()) >= 2

    assert "Gogh" in (out / "README.md").read_text()
    with Image.open(out / "before_after.png") as picture:
        assert min(picture.size) > 50

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    before = drawn(pipe)
    pipe.load_lora_weights(out)
    after = drawn(pipe)
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-3


def drawn(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat in Gogh style", num_inference_steps=3, generator=generator, output_type="np").images
