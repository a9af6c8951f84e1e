from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import BitsAndBytesConfig
from tiny_pipelines import random_unet
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import __main__ as benchmark
from benchmarks.memory import computed
from benchmarks.memory.__main__ import measured_table, parse_config, peaks_table, run_of, trial_job
from benchmarks.memory.computed import (
    COLUMNS,
    DENOISER,
    FLAG_SETS,
    components,
    count,
    linear_bytes,
    table,
    weigh,
)
from benchmarks.memory.models import FLUX, MODELS, SD3, Model, short_run
from benchmarks.memory.peaks import Allocations, Repeated, activations, peaks
from benchmarks.memory.trial import measure, parse_trial
from benchmarks.memory.trials import RECOMMENDED, TRIALS
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.quantization import quantize
from policy.trajectory import Trajectory
from training.config import parse_config as parse_run

MILLIONS = {
    "sd15": (859.5, 123.1, 83.7),
    "sdxl": (2567.5, 817.7, 83.7),
    "sd35-medium": (2469.7, 5580.6, 83.8),
    "sd35-medium-without-t5": (2469.7, 818.3, 83.8),
    "flux-dev": (11901.4, 4885.4, 83.8),
}
"""Numbers in the published files of UNet or transformer, text encoders and VAE."""
PROMPTS = {
    "sd15": (77, 768),
    "sdxl": (77, 2048),
    "sd35-medium": (77 + 256, 4096),
    "sd35-medium-without-t5": (77 + 256, 4096),
    "flux-dev": (512, 4096),
}
"""Tokens of a prompt and their width."""


@pytest.mark.parametrize("name", MODELS)
def test_the_configs_have_the_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]
        counts = (
            count(model.build_denoiser()),
            sum(map(count, model.build_text_encoders())),
            count(model.build_vae()),
        )
    assert [round(n / 1e6, 1) for n in counts] == pytest.approx(MILLIONS[name], abs=0.11)


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_as_large_as_their_base_reads_them(name: str) -> None:
    model = MODELS[name]
    weights = weigh(model, run_of().adapter)
    tokens, width = PROMPTS[name]
    assert weights.prompt == tokens * width
    prompts = ["--num_retain_prompts", "10", "--num_vocabulary_prompts", "3"]
    rows = components(model, weights, run_of(*prompts, "--mixed_precision", "bf16"))
    assert rows["prompts"] == 13 * 2 * tokens * width
    assert model.latent_shape == Backbone.of(model.build_pipeline(torch.bfloat16, "meta")).latent_shape


@pytest.mark.parametrize("flags", [[], ["--load_in_8bit"], ["--load_in_4bit"]], ids=str)
def test_what_is_computed_of_a_quantised_unet_is_what_it_takes(flags: list[str]) -> None:
    memory = run_of(*flags).memory
    unet = random_unet(8, 64, block_out_channels=(64, 128), norm_num_groups=8)
    linear = [(m.out_features, m.in_features) for m in unet.modules() if isinstance(m, torch.nn.Linear)]
    rest = 4 * (count(unet) - sum(rows * columns for rows, columns in linear))
    scales = 0
    if flags:
        bits = BitsAndBytesConfig(load_in_8bit=memory.load_in_8bit, load_in_4bit=memory.load_in_4bit)
        quantize(unet, bits, torch.device("cpu"))
        weights = [m.weight for m in unet.modules() if isinstance(m, torch.nn.Linear)]
        scales = sum(
            4 * (w.quant_state.absmax.numel() if memory.load_in_4bit else w.SCB.numel()) for w in weights
        )
    taken = sum(p.numel() * p.element_size() for p in unet.parameters())
    assert rest + linear_bytes(linear, 4, memory) == taken + scales


def test_flags_take_away_what_they_promise() -> None:
    model = MODELS["sdxl"]
    weights = weigh(model, run_of().adapter)
    rows = {name: components(model, weights, run_of(*flags)) for name, flags in FLAG_SETS.items()}
    assert all(set(row) == set(COLUMNS) for row in rows.values())
    assert (
        rows["none"][DENOISER]
        == 2 * rows["bf16"][DENOISER]
        > 2 * rows["8-bit base"][DENOISER]
        > 2 * rows["4-bit base"][DENOISER]
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
    rollouts = ["--retain_rollouts", "3", "--warmup_rollouts", "7", "--images_per_iteration", "7"]
    steps, shape = 5, (4, 8, 8)

    def size(rollouts: int) -> int:
        trajectory = Trajectory(
            torch.zeros(rollouts, steps + 1, *shape),
            torch.zeros(rollouts, steps, *shape),
            *[torch.zeros(0)] * 3,
        )
        return trajectory.latents.nbytes + trajectory.means.nbytes

    weights = computed.Weights([], 0, 0, 0, 0, 0, 0, 0)
    gradients = torch.zeros(7, steps, *shape).nbytes
    config = run_of("--num_inference_steps", "5", "--num_vocabulary_prompts", "2", *rollouts)
    assert components(model, weights, config)["trajectories"] == size(3 + 2) + size(7) + gradients


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
        with Repeated(), Allocations() as counted:
            passed(unet, "meta")
    given = sorted(
        (e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    held = torch.tensor([e.nbytes() for e in given]).cumsum(0)
    assert counted.peak == pytest.approx(held.max().item(), rel=1e-3) and counted.held == held[-1] == 0


SMALL = Model(
    "small",
    64,
    {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    {
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    (
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 16,
        },
    ),
)


SMALL_VAE = SMALL.vae | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SMALL_CLIP = {**SMALL.texts[0], "eos_token_id": 2}
SMALL_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
SMALL_FLOWS = {
    "sd3": Model(
        "small",
        64,
        {
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_projection_dim": 16,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
        },
        SMALL_VAE,
        (SMALL_CLIP, SMALL_CLIP, SMALL_T5),
        SD3,
    ),
    "flux": Model(
        "small",
        64,
        {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        SMALL_VAE,
        (SMALL_CLIP, SMALL_T5),
        FLUX,
    ),
}


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize("kind", SMALL_FLOWS)
def test_a_saved_base_is_loaded_as_what_it_is(kind: str, texts: int, tmp_path: Path) -> None:
    model = replace(SMALL_FLOWS[kind], texts=SMALL_FLOWS[kind].texts[:texts])
    model.build_pipeline(torch.float32).save_pretrained(tmp_path, safe_serialization=True)
    loaded = Backbone.of(load_pipeline(tmp_path))
    assert type(loaded) is model.kind.backbone and len(loaded.text_encoders) == len(model.texts)
    assert loaded.encode_no_prompt().states.numel() == weigh(model, run_of().adapter).prompt


@pytest.mark.parametrize("kind", SMALL_FLOWS)
def test_the_peaks_of_a_transformer_grow_with_the_batch_and_fall_with_checkpointing(kind: str) -> None:
    model = SMALL_FLOWS[kind]

    def made(*flags: str) -> dict[str, int]:
        return activations(model, run_of("--mixed_precision", "bf16", *flags))

    one, two = made("--train_batch_size", "1"), made("--train_batch_size", "2")
    assert two["update"] == pytest.approx(2 * one["update"], rel=0.05)
    assert two["prompts"] == one["prompts"] > 0
    checkpointed = made("--train_batch_size", "1", "--gradient_checkpointing")
    assert checkpointed["update"] < one["update"]
    config = run_of("--mixed_precision", "bf16", "--train_batch_size", "1")
    weights = weigh(model, config.adapter)
    found, parts = peaks(model, weights, config), components(model, weights, config)
    apart = one["prompts"] - parts["trajectories"] - parts["adapter, gradients, Adam"]
    assert found["prompts"] - found["there all the time"] == apart


def test_flags_lower_the_peaks_that_they_are_for() -> None:
    def made(*flags: str) -> dict[str, int]:
        return activations(SMALL, run_of("--train_batch_size", "4", *flags))

    plain, half = made(), made("--train_batch_size", "2")
    assert plain["rollout"] == pytest.approx(2 * half["rollout"], rel=0.02) and plain[
        "update"
    ] == pytest.approx(2 * half["update"], rel=0.05)
    assert plain["update"] > 2 * plain["rollout"]
    checkpointed = made("--gradient_checkpointing")
    assert checkpointed["update"] < 0.7 * plain["update"] and checkpointed["rollout"] == plain["rollout"]
    assert made("--mixed_precision", "bf16")["update"] < 0.6 * plain["update"]
    # 512 pixels: an image at a time whatever the batch, so that only what the teacher is given grows.
    assert plain["rewards"] < 1.5 * half["rewards"]


def test_a_peak_is_what_is_there_and_what_a_phase_adds_to_it() -> None:
    flags = ["--train_batch_size", "2", "--mixed_precision", "bf16"]
    sparing = [*flags, "--offload_models", "--offload_trajectories"]
    weights, added = weigh(SMALL, run_of().adapter), activations(SMALL, run_of(*flags))
    plain = peaks(SMALL, weights, run_of(*flags))
    assert plain["there all the time"] == sum(components(SMALL, weights, run_of(*flags)).values())
    assert plain["update"] - plain["there all the time"] == max(
        added["update"], added["value gradients"], added["scores"]
    )
    offloaded = peaks(SMALL, weights, run_of(*sparing))
    trajectories = components(SMALL, weights, run_of())["trajectories"]
    assert plain["previews, evaluation"] - offloaded["previews, evaluation"] == pytest.approx(
        trajectories, rel=0.01
    )
    assert (
        offloaded["rollout"]
        < offloaded["rewards"]
        <= offloaded["previews, evaluation"]
        < plain["previews, evaluation"]
    )
    quantized = peaks(SMALL, weights, run_of(*sparing, "--load_in_4bit"))
    assert quantized["there all the time"] < offloaded["there all the time"]
    text = peaks_table([(RECOMMENDED[0], plain)])
    assert "| 6 GB | `--mixed_precision bf16" in text and text.count("**") == 2


def test_what_is_left_out_of_a_base_is_left_out_by_a_flag() -> None:
    for name, _, flags in TRIALS:
        model = MODELS[name]
        assert run_of(*flags).base.without_t5 == (len(model.texts) < len(model.kind.text_encoders))


def test_the_smallest_card_has_room_for_what_is_not_computed() -> None:
    name, cap, flags = RECOMMENDED[0]
    config = run_of(*flags)
    found = peaks(MODELS[name], weigh(MODELS[name], config.adapter), config)
    assert max(found.values()) > 3e9 and 1.1 * max(found.values()) + 1e9 < cap * 1e9


def test_a_saved_model_is_trained_and_what_that_took_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes and the way of the full-size ones; on a CPU the peak is the process's."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    texts = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "clip-nano.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": texts})
    )
    open_clip.add_model_config(tmp_path / "clip-nano.json")
    unet = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }
    unet |= {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    vae = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 2}
    model = Model("tiny", 8, unet, vae, (text,), teacher="clip-nano")
    model.save(tmp_path / "tiny", torch.float32)
    run = [*short_run(tmp_path / "tiny", 2), "--num_inference_steps", "3"]
    run += ["--output_dir", str(tmp_path / "run")]
    report = measure([*run, "--train_batch_size", "1", "--load_in_4bit"], cap=8)
    assert (
        report["fits"]
        and report["iterations"] == 2
        and report["seconds"] > 0
        and report["peak_memory_mb"] > 50
    )
    assert len(list((tmp_path / "run" / "previews").iterdir())) == 2

    def too_much(_: object) -> None:
        torch.empty(10**15)  # no flag takes so large a number

    monkeypatch.setattr("training.baseline.measure_base", too_much)
    failed = measure([*run, "--overwrite_output_dir"])
    assert not failed["fits"] and failed["exit_code"] == 1


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.main(parse_config(["--measure_only", "--output_dir", str(tmp_path)]))
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out and "GPU" in text and "|" not in text


def test_every_goal_has_a_run_of_its_own(tmp_path: Path) -> None:
    config = parse_config(["--output_dir", str(tmp_path)])
    jobs = [trial_job(trial, config) for trial in TRIALS]
    assert config.of_models(TRIALS) == TRIALS
    flux = parse_config(["--models", "flux-dev"])
    assert [name for name, *_ in flux.of_models(RECOMMENDED)] == ["flux-dev"] * 3
    assert len({job.output for job in jobs}) == len(TRIALS)
    for (name, cap, flags), job in zip(TRIALS, jobs, strict=True):
        trial, arguments = parse_trial(list(job.arguments[2:]))
        settings = parse_run(arguments)
        assert trial.cap == cap and settings.validation.validation_steps == 1
        assert settings.base.pretrained_model_name_or_path == str(tmp_path / name / "base")
        assert settings.memory.mixed_precision == "bf16" and "--mixed_precision" in flags
    goals = {(name, cap, "--load_in_4bit" in flags) for name, cap, flags in TRIALS}
    assert (
        goals >= {("sd15", 8, False), ("sdxl", 12, True), ("sdxl", 16, False)}
        and TRIALS[: len(RECOMMENDED)] == RECOMMENDED
    )
    fits = {"fits": True, "allocated_gb": 7.25, "seconds": 30.0, "iterations": 2}
    text = measured_table(TRIALS, [fits, *[{"fits": False, "exit_code": 1}] * (len(TRIALS) - 1)])
    assert (
        "| 6 GB |" in text
        and text.count(" | 7.2 GB | 15.0 |") == 1
        and text.count(" | - |") == len(TRIALS) - 1
    )
