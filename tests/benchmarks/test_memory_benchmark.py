from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import BitsAndBytesConfig
from tiny_pipelines import random_unet
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import train_unlearn_lora as script
from benchmarks.memory import __main__ as benchmark
from benchmarks.memory import computed
from benchmarks.memory.__main__ import RECOMMENDED, TRIALS, measured_table, trial_job
from benchmarks.memory.__main__ import parse_args as parse_benchmark
from benchmarks.memory.computed import COLUMNS, FLAG_SETS, components, count, linear_bytes, table, weigh
from benchmarks.memory.models import MODELS, Model
from benchmarks.memory.peaks import Allocations
from benchmarks.memory.trial import parse_args
from pipelines.quantization import quantize
from policy.trajectory import Trajectory

MILLIONS = {"sd15": (859.5, 123.1, 83.7), "sdxl": (2567.5, 817.7, 83.7)}
"""Parameters of UNet, text encoders and VAE, as published."""


@pytest.mark.parametrize("name", MODELS)
def test_the_configs_have_the_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]
        counts = (
            count(model.build_unet()),
            sum(map(count, model.build_text_encoders())),
            count(model.build_vae()),
        )
    assert [round(n / 1e6, 1) for n in counts] == pytest.approx(MILLIONS[name], abs=0.11)


@pytest.mark.parametrize("flags", [[], ["--load_in_8bit"], ["--load_in_4bit"]], ids=str)
def test_what_is_computed_of_a_quantised_unet_is_what_it_takes(flags: list[str]) -> None:
    args = script.parse_args(["--concept", "cat", *flags])
    unet = random_unet(8, 64, block_out_channels=(64, 128), norm_num_groups=8)
    linear = [(m.out_features, m.in_features) for m in unet.modules() if isinstance(m, torch.nn.Linear)]
    rest = 4 * (count(unet) - sum(rows * columns for rows, columns in linear))
    scales = 0
    if flags:
        quantize(
            unet,
            BitsAndBytesConfig(load_in_8bit=args.load_in_8bit, load_in_4bit=args.load_in_4bit),
            torch.device("cpu"),
        )
        weights = [m.weight for m in unet.modules() if isinstance(m, torch.nn.Linear)]
        scales = sum(
            4 * (w.quant_state.absmax.numel() if args.load_in_4bit else w.SCB.numel()) for w in weights
        )
    taken = sum(p.numel() * p.element_size() for p in unet.parameters())
    assert rest + linear_bytes(linear, 4, args) == taken + scales


def test_flags_take_away_what_they_promise() -> None:
    model = MODELS["sdxl"]
    weights = weigh(model, 8, script.parse_args(["--concept", "cat"]).lora_target_modules)
    rows = {
        name: components(model, weights, script.parse_args(["--concept", "cat", *flags]))
        for name, flags in FLAG_SETS.items()
    }
    assert all(set(row) == set(COLUMNS) for row in rows.values())
    assert (
        rows["none"]["UNet"]
        == 2 * rows["bf16"]["UNet"]
        > 2 * rows["8-bit base"]["UNet"]
        > 2 * rows["4-bit base"]["UNet"]
    )
    offloaded = rows["bf16, offloading"]
    assert (
        offloaded["trajectories"]
        == offloaded["text encoders"]
        == offloaded["VAE"]
        == offloaded["teacher"]
        == 0
    )
    saved = rows["bf16"]["adapter, gradients, Adam"] - rows["bf16, 8-bit Adam"]["adapter, gradients, Adam"]
    assert saved == 6 * weights.adapter < 0.01 * sum(rows["bf16"].values())
    text = table(rows)
    assert len(text.splitlines()) == 2 + len(FLAG_SETS) and "| 4-bit base, offloading | 1,925 | - |" in text


def test_the_trajectories_are_as_large_as_computed() -> None:
    model = Model("tiny", 8, {"cross_attention_dim": 64})
    args = script.parse_args(
        ["--concept", "cat", "--num_inference_steps", "5", "--retain_rollouts", "3", "--warmup_rollouts", "7"]
    )
    steps, shape = 5, (4, 8, 8)

    def size(rollouts: int) -> int:
        trajectory = Trajectory(
            torch.zeros(rollouts, steps + 1, *shape),
            torch.zeros(rollouts, steps, *shape),
            *[torch.zeros(0)] * 3,
        )
        return trajectory.latents.nbytes + trajectory.means.nbytes

    args.images_per_iteration = 7
    weights = computed.Weights([], 0, 0, 0, 0, 0, 0)
    slopes = torch.zeros(7, steps, *shape).nbytes
    assert components(model, weights, args)["trajectories"] == size(3) + size(7) + slopes


def passed(unet: torch.nn.Module, device: str) -> None:
    """A forward and a backward pass, of which nothing is kept."""
    states = torch.zeros(4, 7, 64, device=device, requires_grad=True)
    unet(
        torch.zeros(4, 4, 16, 16, device=device), torch.zeros((), device=device), states
    ).sample.square().mean().backward()


def test_what_is_counted_of_meta_tensors_is_what_the_allocator_gives_out() -> None:
    unet = random_unet(16, 64, block_out_channels=(64, 128), norm_num_groups=8).requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH):
        passed(unet, "cpu")  # what is made once is made
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            passed(unet, "cpu")
        unet.to("meta")
        with Allocations() as counted:
            passed(unet, "meta")
    given = sorted(
        (e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    held = torch.tensor([e.nbytes() for e in given]).cumsum(0)
    assert counted.peak == pytest.approx(held.max().item(), rel=1e-3) and counted.held == held[-1] == 0


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.main(parse_benchmark(["--measure_only", "--output_dir", str(tmp_path)]))
    assert "there is no GPU" in capsys.readouterr().out and "no GPU" in (tmp_path / "table.md").read_text()


def test_every_goal_has_a_run_of_its_own(tmp_path: Path) -> None:
    args = parse_benchmark(["--output_dir", str(tmp_path)])
    jobs = [trial_job(*trial, args) for trial in TRIALS]
    assert len({job.output for job in jobs}) == len(TRIALS)
    for (name, cap, flags), job in zip(TRIALS, jobs, strict=True):
        trial = parse_args(list(job.arguments[2:]))
        settings = script.parse_args(trial.arguments)
        assert (
            trial.cap == cap
            and settings.validation_steps == 1
            and settings.pretrained_model_name_or_path == str(tmp_path / name / "base")
        )
        assert settings.mixed_precision == "bf16" and "--mixed_precision" in flags
    goals = {(name, cap, "--load_in_4bit" in flags) for name, cap, flags in TRIALS}
    assert (
        goals >= {("sd15", 8, False), ("sdxl", 12, True), ("sdxl", 16, False)}
        and TRIALS[: len(RECOMMENDED)] == RECOMMENDED
    )
    fits = {"fits": True, "allocated_gb": 7.25, "seconds": 30.0, "iterations": 2}
    text = measured_table([fits, *[{"fits": False, "exit_code": 1}] * (len(TRIALS) - 1)])
    assert "| 6 GB |" in text and "| 7.2 GB | 15.0 |" in text and "does not fit" in text
