"""Benchmarks that train, on a tiny pipeline: what they call is there, and what they write is complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file

import benchmarks.ablation.run as ablation
import benchmarks.peers.ours as ours
from benchmarks.ablation.variants import VARIANTS
from benchmarks.jobs import run_script
from benchmarks.loop import learn
from benchmarks.peers.settings import MATCHED
from hub.adapter import save_adapter
from training.baseline import measure_base
from training.config import parse_config
from training.run_state import begin
from training.setup import prepare

CommandLine = Callable[..., list[str]]
TRIAL = ablation.TrialConfig(
    "Van Gogh style", 0, 5e-3, budget=40, every=1, judge_seeds=(0,), output=Path("-")
)


@pytest.fixture
def tiny(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that make a run quick, and leave to a benchmark what it sets itself."""
    monkeypatch.setattr(ablation, "JUDGED_STEPS", 2)
    own = ("concept", "output_dir", "max_train_iterations", "evaluation_seeds", "report_to")
    own += ("validation_steps", "checkpointing_steps", "target_unlearning_accuracy")
    return command_line(**dict.fromkeys(own, False))


@pytest.mark.parametrize("variant", ["default", "with a critic", "plain ddpo"])
def test_a_run_of_the_ablation_is_judged_on_its_way(variant: str, tiny: list[str]) -> None:
    found = ablation.train_and_judge(TRIAL, [*tiny, *VARIANTS[variant]])
    iterations = [point["iteration"] for point in found["curve"]]
    assert iterations == list(range(1, len(iterations) + 1)) and len(iterations) >= 3
    judged = [found["base"], *found["curve"]]
    assert all(0 <= point[name] <= 100 for point in judged for name in ("UA", "IRA"))
    images = [point["images"] for point in found["curve"]]
    assert images == sorted(images) and found["training"]["images"] <= 40 + 9
    assert len(found["diagnostics"]) == len(iterations) + 1


def test_ours_beside_the_peer_is_the_script_with_a_watch_on_it(tiny: list[str]) -> None:
    quick = [*tiny, "--images_per_iteration", "6", "--train_batch_size", "4", "--num_inference_steps", "4"]
    flags = [*MATCHED, *quick]
    found, same = ours.train_and_judge(TRIAL, flags), ablation.train_and_judge(TRIAL, flags)
    assert found["base"] == same["base"] and found["images"] == same["training"]["images"]
    curves = [[point | {"seconds": 0.0} for point in of["curve"]] for of in (found, same)]
    assert curves[0] == curves[1] and set(found["parts"]) == {"rollout", "update"}
    assert 0 < sum(found["parts"].values()) < found["seconds"] + 1


@pytest.mark.parametrize(
    "flags", [[], ["--gamma", "0.5", "--replay_iterations", "1"]], ids=["default", "critic"]
)
def test_the_loop_learns_what_the_script_learns(
    flags: list[str], command_line: CommandLine, tmp_path: Path
) -> None:
    """Adapters and metrics are the same bit for bit."""
    line = [*command_line(checkpointing_steps=2, cooldown_updates=1), *flags]
    run_script([*line, "--output_dir", str(tmp_path / "script")])
    config = parse_config([*line, "--output_dir", str(tmp_path / "loop")])
    run = prepare(config)
    base = measure_base(run)
    state = begin(run, base, 0.0)
    learn(run, base, state)
    script, loop = (tmp_path / name / "diagnostics.jsonl" for name in ("script", "loop"))
    assert script.read_text() == loop.read_text()
    save_adapter(tmp_path / "saved", run.denoiser)
    one, other = (load_file(tmp_path / name / LORA_WEIGHT_NAME_SAFE) for name in ("script", "saved"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
