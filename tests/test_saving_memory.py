"""Whole runs that save memory: what they save must not show in what they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from diffusers import DiffusionPipeline
from finished_runs import Finished
from safetensors.torch import load_file
from tiny_pipelines import FLOWS, TINY_PROMPTS, random_unet, random_vae, save_sd

import train_unlearn_lora as script
from benchmarks.worlds.canvas.models import build_scheduler, build_text_encoder, build_tokenizer
from hub.adapter import load_adapter
from pipelines.generate import adapter_disabled, draw
from reward.predictor import RewardPredictor
from training.config import RunConfig
from training.setup import Run, prepare

ADAPTER = "pytorch_lora_weights.safetensors"
QUANTISED = {"8 bits": {"load_in_8bit": True}, "4 bits": {"load_in_4bit": True, "mixed_precision": "bf16"}}
SMALL = {
    "num_inference_steps": 2,
    "images_per_iteration": 3,
    "retain_rollouts": 3,
    "warmup_rollouts": 3,
    "num_validation_images": 1,
}
"""For layers that are slow on a CPU."""
SMOOTH = {"adam_epsilon": 0.1}
"""AdamW's first steps are the signs of the gradient, and the sign of what is hardly more than rounding is
anything: a processor that rounds differently may take a step of the whole learning rate the other way. With
a large epsilon a small gradient takes a small step, so that rounding stays as small as it was."""
Make = Callable[..., RunConfig]
Finish = Callable[..., Finished]


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / ADAPTER)


def training(directory: Path) -> dict[str, Any]:
    """What a run says that it has come to."""
    return json.loads((directory / "results.json").read_text())["training"]


def save_flat(directory: Path, width: int, **settings: Any) -> Path:
    """A pipeline whose UNet has blocks of one resolution only, for what costs by the layer. Its latents are
    as the tiny pipeline's."""
    torch.manual_seed(0)
    tokenizer, text_encoder = build_tokenizer(), build_text_encoder(build_tokenizer(), width=width)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet = random_unet(8, width, **blocks, **settings)
    save_sd(directory, tokenizer, text_encoder, random_vae(8), unet, build_scheduler())
    return directory


@pytest.fixture(scope="module")
def flat_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flat(tmp_path_factory.mktemp("flat"), 16, block_out_channels=(8,))


@pytest.fixture(scope="module")
def broad_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear layers of 64 to 512 features: as wide as a block of bitsandbytes, and wider."""
    return save_flat(tmp_path_factory.mktemp("broad"), 64, block_out_channels=(64,), norm_num_groups=8)


def assert_same_run(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Adapters that differ by rounding alone, by a hundredth of what was learnt at most: without the learning
    both would have matrices of zeros. What two iterations make of the last bits is some millionths."""
    assert one.keys() == other.keys()
    learnt = [name for name in one if "lora_B" in name or "lora.up" in name]
    moved = max(one[name].abs().max() for name in learnt)
    assert moved > 1e-3
    assert max((one[name] - other[name]).abs().max() for name in one) < moved / 100


def deviation(directory: Path, whole: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far every number of a directory's adapter is from the one of another."""
    parts = adapter(directory)
    return torch.cat([(parts[name] - tensor).flatten() for name, tensor in whole.items()]).abs()


def test_small_batches_make_the_same_run(finished: Finish) -> None:
    """Rollouts, gradients, updates and the retain states beside them, two at a time in place of all."""
    runs = [
        finished(
            train_batch_size=size,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            lr_scheduler="constant",
        )
        for size in (8, 2)
    ]
    whole = adapter(runs[0].directory)
    moved = (tensor for name, tensor in whole.items() if "lora_B" in name or "lora.up" in name)
    assert max(tensor.abs().max() for tensor in moved) > 5e-4
    for run in runs[1:]:
        # Adam divides by the gradient's size, so that rounding shows where a gradient is nearly nothing; a
        # step is 1e-3 at most.
        off = deviation(run.directory, whole)
        assert off.mean() < 1e-5 and off.quantile(0.99) < 1e-4
        assert run.training["unet_samples"] == runs[0].training["unet_samples"]
        assert run.training["first_ratio_deviation"] == 0


def test_a_compiled_unet_makes_the_same_run(
    flat_pipeline_dir: Path,
    finished: Finish,
    arguments: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced and differentiated ahead of time, with nothing left to a compiler that this machine may lack:
    without gradients, with them, with those of the prompts, and the base without gradients. Previews are
    drawn by what rollouts are drawn by."""
    settings = SMOOTH | SMALL | {"num_inference_steps": 3, "max_train_iterations": 1}
    settings |= {"pretrained_model_name_or_path": flat_pipeline_dir, "num_validation_images": 3}
    plain = adapter(finished(**settings).directory)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    torch._dynamo.utils.counters.clear()
    script.main(arguments(torch_compile=True, **settings))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert_same_run(plain, adapter(tmp_path / "out"))
    assert training(tmp_path / "out")["first_ratio_deviation"] < 1e-5


@pytest.mark.parametrize("more", [{}, {"load_in_4bit": True}], ids=["plain", "4 bits"])
def test_channels_last_make_the_same_run(
    more: dict[str, Any], broad_pipeline_dir: Path, finished: Finish, arguments: Make, tmp_path: Path
) -> None:
    settings = {"pretrained_model_name_or_path": broad_pipeline_dir, **SMOOTH, **SMALL, **more}
    first = adapter(finished(**settings).directory)
    config = arguments(channels_last=True, **settings)
    run = prepare(config)
    assert run.denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    script.train(run, config)
    assert_same_run(first, adapter(tmp_path / "out"))
    assert training(tmp_path / "out")["first_ratio_deviation"] == 0


@pytest.mark.parametrize(
    ("environment", "options", "compiled"),
    [
        ({}, {}, False),
        ({"BACKEND": "no", "MODE": "default", "USE_DYNAMIC": "False"}, {}, False),
        ({"BACKEND": "no", "MODE": "default", "USE_DYNAMIC": "False"}, {"torch_compile": True}, True),
        ({"BACKEND": "AOT_EAGER", "USE_DYNAMIC": "False"}, {}, True),
    ],
    ids=["python", "accelerate launch", "the flag", "the launcher's flag"],
)
def test_the_unet_is_compiled_only_where_that_is_asked_for(
    environment: dict[str, str],
    options: dict[str, Any],
    compiled: bool,
    arguments: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launcher has settings in the environment whether it was asked for anything or not."""
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", value)
    unet = prepare(arguments(**options)).denoiser
    assert (unet._compiled_call_impl is not None) == compiled


FIRST = {"max_train_iterations": 1, "checkpointing_steps": 1}
"""A run that stops where another goes on."""


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5, "replay_iterations": 2}], ids=["defaults", "critic and replay"]
)
def test_what_waits_in_main_memory_changes_nothing(
    options: dict[str, Any], finished: Finish, arguments: Make, tmp_path: Path
) -> None:
    """On a CPU everything does; a resumed run may turn to it. Previews change nothing either."""
    options = options | SMOOTH | {"lr_scheduler": "constant"}
    # Images are decoded one by one, which rounds differently.
    plain = adapter(finished(**options).directory)
    shutil.copytree(finished(**FIRST, **options).directory, tmp_path / "out")
    saving = {"offload_models": True, "offload_trajectories": True, "validation_steps": 1}
    script.main(arguments(resume_from_checkpoint="latest", **saving, **options))
    assert_same_run(plain, adapter(tmp_path / "out"))


@pytest.mark.parametrize("options", QUANTISED.values(), ids=QUANTISED.keys())
def test_a_quantised_base_is_trained_on_and_its_adapter_is_for_the_base(
    options: dict[str, Any], broad_pipeline_dir: Path, finished: Finish, arguments: Make, tmp_path: Path
) -> None:
    saving = (
        SMALL
        | options
        | {
            "pretrained_model_name_or_path": broad_pipeline_dir,
            "offload_models": True,
            "gradient_checkpointing": True,
        }
    )
    first, whole = (adapter(finished(**more, **saving).directory) for more in (FIRST, {}))
    shutil.copytree(finished(**FIRST, **saving).directory, tmp_path / "out")
    config = arguments(resume_from_checkpoint="latest", evaluation_seeds=[0], validation_steps=1, **saving)
    run = prepare(config)
    script.train(run, config)
    assert_trains_float32(run)
    learnt = adapter(tmp_path / "out")
    assert all(torch.equal(learnt[name], tensor) for name, tensor in whole.items())
    assert not all(torch.equal(learnt[name], tensor) for name, tensor in first.items())
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    came_to = training(tmp_path / "out")
    assert came_to["first_ratio_deviation"] == 0 and came_to["last_iteration"]["retain_drop"] is not None

    pipe = DiffusionPipeline.from_pretrained(broad_pipeline_dir)
    jobs = [("a cat image in Van Gogh style", 0)]
    before = draw(pipe, jobs, num_inference_steps=3)[0].tobytes()
    load_adapter(pipe, tmp_path / "out")
    assert draw(pipe, jobs, num_inference_steps=3)[0].tobytes() != before
    with adapter_disabled(pipe):
        assert draw(pipe, jobs, num_inference_steps=3)[0].tobytes() == before


@pytest.mark.parametrize("options", QUANTISED.values(), ids=QUANTISED.keys())
@pytest.mark.parametrize("kind", FLOWS)
def test_a_quantised_transformer_is_trained_on(
    kind: str, options: dict[str, Any], flow_dirs: dict[str, Path], arguments: Make, tmp_path: Path
) -> None:
    RewardPredictor(16, 8, 64, width=8, condition_dim=16, prompts=TINY_PROMPTS).save_pretrained(
        tmp_path / "reward"
    )
    config = arguments(
        pretrained_model_name_or_path=flow_dirs[kind],
        reward_model_name_or_path=tmp_path / "reward",
        resolution=16,
        offload_models=True,
        offload_trajectories=True,
        gradient_checkpointing=True,
        validation_steps=1,
        masked_steps=2,
        **SMALL | {"num_inference_steps": 4} | options,
    )
    run = prepare(config)
    quantised = [m for m in run.denoiser.modules() if type(m).__name__ in ("Linear8bitLt", "Linear4bit")]
    assert quantised and all(encoder.device.type == "cpu" for encoder in run.env.backbone.text_encoders)
    script.train(run, config)
    assert_trains_float32(run)
    learnt = adapter(tmp_path / "out")
    assert any(tensor.any() for name, tensor in learnt.items() if "lora_B" in name)
    assert training(tmp_path / "out")["first_ratio_deviation"] == 0


def test_a_dry_run_and_a_file_of_settings(
    broad_pipeline_dir: Path, arguments: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bnb.json").write_text('{"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}')
    given = {
        "bnb_quantization_config_path": tmp_path / "bnb.json",
        "pretrained_model_name_or_path": broad_pipeline_dir,
    }
    script.main(arguments(dry_run=True, **given))
    assert capsys.readouterr().out and not (tmp_path / "out").exists()
    script.main(arguments(**FIRST, **SMALL, **given))
    text = (tmp_path / "out" / "results.json").read_text()
    assert (
        json.loads(text)["settings"]["bnb_quantization_config_path"]["bnb_4bit_quant_type"] == "fp4"
        and str(tmp_path) not in text
    )
    (tmp_path / "bnb.json").write_text('{"load_in_8bit": true}')
    with pytest.raises(ValueError, match="--bnb_quantization_config_path"):
        prepare(arguments(resume_from_checkpoint="latest", **SMALL, **given))


def test_the_adapter_stays_float32_through_previews_and_resuming(arguments: Make, tmp_path: Path) -> None:
    """On a base in half precision; the quantised ones are tested above."""
    for more in (FIRST, {"resume_from_checkpoint": "latest"}):
        config = arguments(mixed_precision="bf16", validation_steps=1, **SMALL, **more)
        run = prepare(config)
        script.train(run, config)
        assert_trains_float32(run)
        assert run.denoiser.dtype == torch.bfloat16


def assert_trains_float32(run: Run) -> None:
    """The optimizer has all that is trained, and that is float32."""
    trained = [p for p in run.denoiser.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trained}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fp16 on a CPU": ({"mixed_precision": "fp16"}, "--mixed_precision"),
    "4 bits and 8": ({"load_in_4bit": True, "load_in_8bit": True}, "--load_in_8bit"),
    "settings that are not there": (
        {"bnb_quantization_config_path": "absent.json"},
        "--bnb_quantization_config_path",
    ),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD.keys())
def test_what_does_not_go_together_is_said_before_anything_is_loaded(
    options: dict[str, Any], named: str, arguments: Make, tmp_path: Path
) -> None:
    """Loading would say that the base is not there."""
    config = arguments(pretrained_model_name_or_path=tmp_path / "absent", **options)
    with pytest.raises(ValueError, match=named) as caught:
        prepare(config)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_too_little_memory_is_a_sentence_with_the_flags_to_try(
    arguments: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight million gigabytes of prompt ids, which no machine has and no flag may ask for."""
    config = arguments(gradient_checkpointing=True)
    schedule = replace(config.schedule, retain_rollouts=10**15)
    with pytest.raises(SystemExit) as caught:
        script.main(replace(config, schedule=schedule))
    assert caught.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "--mixed_precision bf16" in error
    assert "--gradient_checkpointing" not in error
