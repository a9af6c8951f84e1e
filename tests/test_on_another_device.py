"""The training script where the accelerator is not the CPU: every tensor is where it is needed, and the
CPU seldom waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from another_device import needs_another_device, run_on_another_device, waits
from rounding import SMOOTH, adapter, assert_as_near_as_a_bit, nudged
from torch.nn.attention import SDPBackend, sdpa_kernel

import policy.policy
import train_unlearn_lora as script
from training.config import parse_config

pytestmark = needs_another_device
Line = Callable[..., list[str]]
OPTIONS: dict[str, dict[str, Any]] = {
    "critic, replay, evaluation": {"gamma": 0.5, "replay_iterations": 1, "evaluation_seeds": 0},
    "offloading, previews": {
        "offload_models": True,
        "offload_trajectories": True,
        "validation_steps": 1,
        "train_batch_size": 3,
    },
}
QUICK = {
    "num_inference_steps": 3,
    "num_validation_images": 1,
    "train_batch_size": 64,
    "images_per_iteration": 3,
    "retain_rollouts": 3,
    "warmup_rollouts": 3,
}


def train(line: list[str]) -> None:
    script.main(parse_config(line))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_on_another_device_is_the_run_on_the_cpu(
    options: dict[str, Any], command_line: Line, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    """Up to rounding, which learning amplifies: kernels read other layouts there."""
    changes = QUICK | SMOOTH | options
    base = nudged(tiny_pipeline_dir, tmp_path / "base")
    with sdpa_kernel(SDPBackend.MATH):
        train(command_line(output_dir=tmp_path / "here", **changes))
        unjudged = changes | {"evaluation_seeds": None, "pretrained_model_name_or_path": base}
        train(command_line(output_dir=tmp_path / "bit", **unjudged))
    run_on_another_device(train, command_line(output_dir=tmp_path / "there", **changes))
    assert adapter(tmp_path / "here").abs().max() > 1e-3
    assert_as_near_as_a_bit(tmp_path / "there", tmp_path / "here", tmp_path / "bit")


def test_what_mixes_devices_fails_there(tmp_path: Path) -> None:
    """The device is as strict as it says."""

    def mixed(_: list[str]) -> None:
        row = torch.arange(3, device="elsewhere")
        assert (row + 1).device.type == "elsewhere" and (row + torch.tensor(1)).cpu().tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError, match="on the same device"):
            row + torch.arange(3)
        with pytest.raises(TypeError, match="to numpy"):
            row.numpy()
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.arange(3)[row]
        (tmp_path / "done").touch()

    run_on_another_device(mixed, [])
    assert (tmp_path / "done").exists()


def test_an_optimizer_step_waits_for_the_device_twice(command_line: Line, tmp_path: Path) -> None:
    """For the gradient's norm and for its diagnostics, whatever it adds up: kernels are launched ahead in
    between."""

    def first_update(line: list[str]) -> None:
        update = policy.policy.update_policy

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = waits.total()
            stats = update(*args, **kwargs)
            found = {
                "waits": waits.total() - before,
                "steps": len(stats.grad_norm),
                "terms": sum(map(len, stats.by_step.values())),
            }
            (tmp_path / "found.json").write_text(json.dumps(found))
            raise SystemExit(0)

        policy.policy.update_policy = counted
        train(line)

    run_on_another_device(
        first_update,
        command_line(
            num_inference_steps=4, gradient_accumulation_steps=2, target_kl=1e9, train_timestep_fraction=1
        ),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["terms"] > found["steps"] > 1
    assert found["waits"] == 2 * found["steps"]
