"""Whole runs that save memory: what they save must not show in what they make."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_pipelines import random_unet, random_vae, save_sd

import train_unlearn_lora as script
from benchmarks.worlds.canvas.models import build_scheduler, build_text_encoder, build_tokenizer
from hub.adapter import load_adapter
from pipelines.generate import adapter_disabled, draw

ADAPTER = "pytorch_lora_weights.safetensors"
QUANTISED = {"8 bits": {"load_in_8bit": True}, "4 bits": {"load_in_4bit": True, "mixed_precision": "bf16"}}
Make = Callable[..., argparse.Namespace]


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / ADAPTER)


@pytest.fixture(scope="module")
def broad_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linear layers of 64 to 512 features: as wide as a block of bitsandbytes, and wider. Latents as the
    tiny pipeline's."""
    directory = tmp_path_factory.mktemp("broad")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    unet = random_unet(8, 64, block_out_channels=(64, 128), norm_num_groups=8)
    save_sd(
        directory, tokenizer, build_text_encoder(tokenizer, width=64), random_vae(8), unet, build_scheduler()
    )
    return directory


def test_small_batches_make_the_same_run(arguments: Make, tmp_path: Path) -> None:
    """Rollouts, slopes, updates and the retain states beside them, two and one at a time in place of all."""
    for size in (8, 2, 1):
        settings = {
            "train_batch_size": size,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "num_validation_images": 2,
        }
        script.main(arguments(output_dir=tmp_path / str(size), **settings))
    whole, results = (
        adapter(tmp_path / "8"),
        json.loads((tmp_path / "8" / "results.json").read_text())["training"],
    )
    assert (
        max(tensor.abs().max() for name, tensor in whole.items() if "lora_B" in name or "lora.up" in name)
        > 5e-4
    )
    for size in (2, 1):
        parts, figures = (
            adapter(tmp_path / str(size)),
            json.loads((tmp_path / str(size) / "results.json").read_text())["training"],
        )
        # Adam divides by the gradient's size, so that rounding shows where a gradient is nearly nothing; a
        # step is 1e-3 at most.
        deviation = torch.cat([(parts[name] - tensor).flatten() for name, tensor in whole.items()]).abs()
        assert deviation.mean() < 1e-5 and deviation.quantile(0.99) < 1e-4
        assert figures["unet_samples"] == results["unet_samples"] and figures["first_ratio_deviation"] == 0


def test_a_compiled_unet_makes_the_same_run(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated ahead of time, with nothing left to a compiler that this machine may lack."""
    settings = {"learning_rate": 1e-3, "num_validation_images": 2}
    script.main(arguments(output_dir=tmp_path / "plain", **settings))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    torch._dynamo.utils.counters.clear()
    script.main(arguments(output_dir=tmp_path / "compiled", torch_compile=True, **settings))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain, compiled = adapter(tmp_path / "plain"), adapter(tmp_path / "compiled")
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-4) for name in plain)
    assert (
        json.loads((tmp_path / "compiled" / "results.json").read_text())["training"]["first_ratio_deviation"]
        < 1e-5
    )


@pytest.mark.parametrize("more", [{}, {"load_in_4bit": True}], ids=["plain", "4 bits"])
def test_channels_last_make_the_same_run(
    more: dict[str, Any], broad_pipeline_dir: Path, arguments: Make, tmp_path: Path
) -> None:
    settings = {
        "num_validation_images": 2,
        "learning_rate": 1e-3,
        "pretrained_model_name_or_path": broad_pipeline_dir,
        **more,
    }
    script.main(arguments(output_dir=tmp_path / "first", **settings))
    parts = script.prepare(arguments(output_dir=tmp_path / "last", channels_last=True, **settings))
    assert parts.env.pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    results = script.train(arguments(output_dir=tmp_path / "last", channels_last=True, **settings), *parts)
    first, last = adapter(tmp_path / "first"), adapter(tmp_path / "last")
    assert all(torch.allclose(first[name], last[name], atol=1e-4) for name in first)
    assert results["training"]["first_ratio_deviation"] == 0


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
    unet = script.prepare(arguments(**options)).env.pipe.unet
    assert (unet._compiled_call_impl is not None) == compiled


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5, "replay_iterations": 2}], ids=["defaults", "critic and replay"]
)
def test_what_waits_in_main_memory_changes_nothing(
    options: dict[str, Any], arguments: Make, tmp_path: Path
) -> None:
    """On a CPU everything does; a resumed run may turn to it."""
    pictures = {"validation_steps": 1, "num_validation_images": 2}
    script.main(arguments(output_dir=tmp_path / "plain", **pictures, **options))
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1, **pictures, **options))
    script.main(
        arguments(
            resume_from_checkpoint="latest",
            offload_models=True,
            offload_trajectories=True,
            **pictures,
            **options,
        )
    )
    plain, offloaded = adapter(tmp_path / "plain"), adapter(tmp_path / "out")
    for name, tensor in plain.items():  # images are decoded one by one, which rounds differently
        torch.testing.assert_close(offloaded[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", QUANTISED.values(), ids=QUANTISED.keys())
def test_a_quantised_base_is_trained_on_and_its_adapter_is_for_the_base(
    options: dict[str, Any], broad_pipeline_dir: Path, arguments: Make, tmp_path: Path
) -> None:
    saving = options | {
        "pretrained_model_name_or_path": broad_pipeline_dir,
        "offload_models": True,
        "gradient_checkpointing": True,
    }
    script.main(arguments(checkpointing_steps=1, max_train_iterations=1, num_validation_images=2, **saving))
    first = adapter(tmp_path / "out")
    script.main(arguments(resume_from_checkpoint="latest", evaluation_seeds=[0], **saving))
    script.main(arguments(output_dir=tmp_path / "whole", num_validation_images=2, **saving))
    learnt, whole = adapter(tmp_path / "out"), adapter(tmp_path / "whole")
    assert all(torch.equal(learnt[name], tensor) for name, tensor in whole.items())
    assert not all(torch.equal(learnt[name], tensor) for name, tensor in first.items())
    assert {tensor.dtype for tensor in learnt.values()} == {torch.float32}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["training"]["first_ratio_deviation"] == 0
        and results["training"]["last_iteration"]["retain_drop"] is not None
    )

    pipe = DiffusionPipeline.from_pretrained(broad_pipeline_dir)
    jobs = [("a cat image in Van Gogh style", 0)]
    before = draw(pipe, jobs, num_inference_steps=3)[0].tobytes()
    load_adapter(pipe, tmp_path / "out")
    assert draw(pipe, jobs, num_inference_steps=3)[0].tobytes() != before
    with adapter_disabled(pipe):
        assert draw(pipe, jobs, num_inference_steps=3)[0].tobytes() == before


def test_a_dry_run_and_a_file_of_settings(
    broad_pipeline_dir: Path, arguments: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bnb.json").write_text('{"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}')
    given = {
        "bnb_quantization_config_path": tmp_path / "bnb.json",
        "pretrained_model_name_or_path": broad_pipeline_dir,
    }
    script.main(arguments(dry_run=True, **given))
    assert "at the probe's peak" in capsys.readouterr().out and not (tmp_path / "out").exists()
    script.main(arguments(max_train_iterations=1, checkpointing_steps=1, **given))
    text = (tmp_path / "out" / "results.json").read_text()
    assert (
        json.loads(text)["settings"]["bnb_quantization_config_path"]["bnb_4bit_quant_type"] == "fp4"
        and str(tmp_path) not in text
    )
    (tmp_path / "bnb.json").write_text('{"load_in_8bit": true}')
    with pytest.raises(SystemExit):
        script.main(arguments(resume_from_checkpoint="latest", **given))
    assert "--bnb_quantization_config_path was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [{}, {"mixed_precision": "bf16"}, *QUANTISED.values()], ids=["float32", "bfloat16", *QUANTISED]
)
def test_the_adapter_stays_float32_through_previews_and_resuming(
    options: dict[str, Any], broad_pipeline_dir: Path, arguments: Make, tmp_path: Path
) -> None:
    given = options | {
        "pretrained_model_name_or_path": broad_pipeline_dir,
        "validation_steps": 1,
        "num_validation_images": 2,
    }
    for resume in (
        {"max_train_iterations": 1, "checkpointing_steps": 1},
        {"resume_from_checkpoint": "latest"},
    ):
        args = arguments(**given, **resume)
        parts = script.prepare(args)
        script.train(args, *parts)
        unet, optimizer = parts[1].pipe.unet, parts[3]
        trained = [p for p in unet.parameters() if p.requires_grad]
        assert trained and {p.dtype for p in trained} == {torch.float32}
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in trained
        }
        assert unet.dtype == (torch.bfloat16 if "mixed_precision" in options else torch.float32)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fp16 on a CPU": ({"mixed_precision": "fp16"}, "--mixed_precision fp16 needs a GPU"),
    "4 bits and 8": ({"load_in_4bit": True, "load_in_8bit": True}, "exclude one another"),
    "settings that are not there": ({"bnb_quantization_config_path": "absent.json"}, "cannot be read"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD.keys())
def test_what_does_not_go_together_is_one_sentence_before_anything_is_loaded(
    options: dict[str, Any], says: str, arguments: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script.main(
            arguments(pretrained_model_name_or_path=tmp_path / "absent", **options)
        )  # loading would say that this is not there
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert says in error


def test_too_little_memory_is_a_sentence_with_the_flags_to_try(
    arguments: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight million gigabytes of prompt ids, which no machine has."""
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(retain_rollouts=10**15, gradient_checkpointing=True))
    assert caught.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: there is not enough memory; try, in this order and together: --mixed_precision bf16, "
    )
    assert "--gradient_checkpointing" not in error and "docs/hardware.md" in error
