from __future__ import annotations

import argparse

import pytest
import torch
from diffusers import UNet2DConditionModel

import train_unlearn_lora as script
from benchmarks.memory.models import MODELS
from benchmarks.operations import forward_operations, matrix_peak
from benchmarks.scaling import Iteration, iteration, main, operations, parse_args, table


def test_a_unet_costs_what_others_count() -> None:
    """401 GMAC for Stable Diffusion 1.5 at 512 px is the figure that model profilers publish."""
    assert operations(MODELS["sd15"]) / 2e9 == pytest.approx(401, rel=0.01)


def test_work_is_shared_and_traffic_is_not() -> None:
    work = Iteration(images=8, operations=8e12, gathered=1000, reduced=100)
    assert work.exchanged(1) == 0 and work.exchanged(2) == 600 and work.exchanged(4) == 900
    rows = table({1: work, 4: work}, argparse.Namespace(tflops=1.0, gb_per_second=1e-9)).splitlines()
    assert rows[2] == "| 1 | 8 | 8 | 8.00 | 0 MB | 0.000 | 0.0 % |"
    assert rows[3].startswith("| 4 | 8 | 2 | 2.00 | 0 MB | 900.000 |")


def test_an_iteration_is_made_of_rollouts_references_updates_and_their_backward_passes() -> None:
    args = script.parse_args(
        [
            "--concept",
            "cat",
            "--num_inference_steps",
            "6",
            "--images_per_iteration",
            "4",
            "--retain_batch_size",
            "2",
        ]
    )
    found = iteration(MODELS["sd15"], args)  # 2 of 4 steps are trained
    samples = 2 * (6 * 6 + 2 * (4 + 4 + 4 + 2) + 2 * (4 + 4 + 2))
    assert found.operations == samples * operations(MODELS["sd15"]) and found.images == 6
    assert found.gathered == 4 * 4 * 64 * 64 * (6 * 13 + 4 * 6)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(parse_args(["--processes", "1", "64"]))
    said = capsys.readouterr().out
    assert said.count("| 64 | 384 |") == 2 and said.count("| 1 | 48 |") == 2


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr("benchmarks.operations.now", lambda: next(clock))
    assert matrix_peak(torch.device("cpu"), torch.float32, repeats=3) == 2 * 1024**3 / 2.0


def test_operations_are_counted_of_latents_that_are_not_square() -> None:
    with torch.device("meta"):
        square, wide, tall = (
            UNet2DConditionModel(sample_size=size, cross_attention_dim=768) for size in (8, (8, 16), (16, 8))
        )
    assert forward_operations(wide) == forward_operations(tall) > 1.5 * forward_operations(square)
