"""The peaks of whole runs, counted on meta tensors, and a run that is measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import open_clip
import pytest
import torch

import benchmarks.memory.peaks as memory_peaks
import train_unlearn_lora as script
from benchmarks.memory.__main__ import RECOMMENDED, peaks_table
from benchmarks.memory.computed import components, weigh
from benchmarks.memory.models import MODELS, Model, short_run
from benchmarks.memory.peaks import activations, peaks
from benchmarks.memory.trial import measure, parse_args

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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """Arguments that a run was counted for: the same are not counted again, since a count takes seconds."""
    asked: list[argparse.Namespace] = []
    found: list[dict[str, int]] = []

    def once(model: Model, args: argparse.Namespace) -> dict[str, int]:
        if args not in asked:
            found.append(activations(model, args))
            asked.append(argparse.Namespace(**vars(args)))
        return found[asked.index(args)]

    monkeypatch.setattr("benchmarks.memory.peaks.activations", once)
    return asked


def test_flags_lower_the_peaks_that_they_are_for() -> None:
    def made(*flags: str) -> dict[str, int]:
        return activations(SMALL, script.parse_args(["--concept", "cat", "--train_batch_size", "4", *flags]))

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


def test_a_peak_is_what_is_there_and_what_a_phase_adds_to_it(counted: list[argparse.Namespace]) -> None:
    args = script.parse_args(["--concept", "cat", "--train_batch_size", "2", "--mixed_precision", "bf16"])
    weights = weigh(SMALL, 8, args.lora_target_modules)
    plain = peaks(SMALL, weights, args)
    added = memory_peaks.activations(SMALL, args)
    assert plain["there all the time"] == sum(components(SMALL, weights, args).values())
    assert plain["update"] - plain["there all the time"] == max(
        added["update"], added["slopes"], added["scores"]
    )
    args.offload_models = args.offload_trajectories = True
    offloaded = peaks(SMALL, weights, args)
    trajectories = components(SMALL, weights, script.parse_args(["--concept", "cat"]))["trajectories"]
    assert plain["previews, evaluation"] - offloaded["previews, evaluation"] == pytest.approx(
        trajectories, rel=0.01
    )
    assert (
        offloaded["rollout"]
        < offloaded["rewards"]
        <= offloaded["previews, evaluation"]
        < plain["previews, evaluation"]
    )
    assert len(counted) == 2
    args.load_in_4bit = True
    assert sum(components(SMALL, weights, args).values()) < offloaded["there all the time"]
    text = peaks_table([(RECOMMENDED[0], plain)])
    assert "| 6 GB | `--mixed_precision bf16" in text and text.count("**") == 2


def test_the_smallest_card_has_room_for_what_is_not_computed() -> None:
    name, cap, flags = RECOMMENDED[0]
    args = script.parse_args(["--concept", "cat", *flags])
    found = peaks(MODELS[name], weigh(MODELS[name], args.rank, args.lora_target_modules), args)
    assert max(found.values()) > 3e9 and 1.1 * max(found.values()) + 1e9 < cap * 1e9


def test_a_saved_model_is_trained_and_what_that_took_is_written_down(tmp_path: Path) -> None:
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
    model = Model("tiny", 8, unet, vae, (text | {"bos_token_id": 0, "eos_token_id": 2},), teacher="clip-nano")
    model.save(tmp_path / "tiny", torch.float32)
    run = [
        *short_run(tmp_path / "tiny", 2),
        "--num_inference_steps",
        "3",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    report = measure(
        parse_args(
            [
                "--cap",
                "8",
                "--output",
                str(tmp_path / "out.json"),
                "--",
                *run,
                "--train_batch_size",
                "1",
                "--load_in_4bit",
            ]
        )
    )
    assert (
        report["fits"]
        and report["iterations"] == 2
        and report["seconds"] > 0
        and report["peak_memory_mb"] > 50
    )
    assert len(list((tmp_path / "run" / "previews").iterdir())) == 2
    failed = measure(
        parse_args(["--output", "x", "--", *run, "--overwrite_output_dir", "--retain_rollouts", str(10**15)])
    )
    assert not failed["fits"] and failed["exit_code"] == 1
