from __future__ import annotations

import argparse

import pytest
import torch

import train_unlearn_lora as script
from benchmarks.memory.models import MODELS
from benchmarks.operations import matrix_peak
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
    args = script.parse_args(["--concept", "cat", "--num_inference_steps", "6", "--images_per_iteration", "4", "--retain_batch_size", "2"])
    found = iteration(MODELS["sd15"], args)  # 2 of 4 steps are trained
    samples = 2 * (6 * 6 + 2 * (4 + 4 + 2) + 2 * (4 + 2))
    assert found.operations == samples * operations(MODELS["sd15"]) and found.images == 6
    assert found.gathered == 4 * 4 * 64 * 64 * (6 * 13 + 4 * 6)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(parse_args(["--processes", "1", "64"]))
    said = capsys.readouterr().out
    assert said.count("| 64 | 384 |") == 2 and said.count("| 1 | 48 |") == 2


def test_the_peak_is_that_of_a_matrix_product() -> None:
    """Above what plain Python does by far, and below what any device does."""
    assert 1e8 < matrix_peak(torch.device("cpu"), torch.float32, repeats=2) < 1e16
