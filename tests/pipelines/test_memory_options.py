from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig

from common import flags
from common.memory import out_of_memory
from pipelines.memory import MemoryConfig, flags_to_try, memory_options, read_quantization

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def parse(*line: str) -> MemoryConfig:
    return flags.parse(MemoryConfig, line, None)


def given(path: Path, settings: Any) -> tuple[str, str]:
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return "--bnb_quantization_config_path", str(path)


def test_nothing_is_saved_unless_asked_for() -> None:
    options = memory_options(parse(), CPU)
    assert (options.quantization, options.offload_models, options.offload_trajectories) == (
        None,
        False,
        False,
    )


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_four_bits_are_nf4_and_compute_in_the_precision_of_the_base(
    precision: str, dtype: torch.dtype
) -> None:
    config = memory_options(parse("--load_in_4bit", "--mixed_precision", precision), CPU).quantization
    assert config is not None and config.load_in_4bit and not config.load_in_8bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", dtype)


def test_a_file_is_read_as_diffusers_writes_it_and_as_one_writes_it_by_hand(tmp_path: Path) -> None:
    written = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    written.to_json_file(tmp_path / "written.json")
    config = memory_options(
        parse("--bnb_quantization_config_path", str(tmp_path / "written.json")), CPU
    ).quantization
    assert config is not None and config.load_in_8bit and config.llm_int8_threshold == 4.0
    by_hand = given(
        tmp_path / "hand.json",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    )
    config = memory_options(parse(*by_hand, "--mixed_precision", "bf16"), GPU).quantization
    assert config is not None and (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (
        "fp4",
        True,
    )
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("line", "device", "named"),
    [
        (["--mixed_precision", "fp16"], CPU, ["--mixed_precision"]),
        (["--load_in_8bit", "--load_in_4bit"], CPU, ["--load_in_8bit", "--load_in_4bit"]),
        (
            ["--load_in_8bit", "--bnb_quantization_config_path", "x.json"],
            CPU,
            ["--load_in_8bit", "--bnb_quantization_config_path"],
        ),
        (["--load_in_4bit"], GPU, ["--load_in_4bit", "--mixed_precision bf16"]),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    line: list[str], device: torch.device, named: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        memory_options(parse(*line), device)
    assert all(flag in str(caught.value) for flag in named)


def test_the_launchers_precision_counts_where_the_flag_was_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse().precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parse().precision == "bf16" and parse("--mixed_precision", "no").precision == "no"
    config = memory_options(parse("--load_in_4bit"), GPU).quantization
    assert config is not None and config.bnb_4bit_compute_dtype == torch.bfloat16
    for theirs in ("fp8", "fp16"):  # one that is not known here, and one that needs a GPU
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", theirs)
        with pytest.raises(ValueError, match="--mixed_precision"):
            memory_options(parse(), CPU)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("{", "JSON"),
        ([1], "JSON"),
        ({"load_in_4bit": True, "bits": 3, "a": 1}, "a, bits"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit"),
        ({"load_in_4bit": "yes"}, "load_in_4bit"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float3"}, "float3"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "nf4"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
        ({}, "load_in_8bit"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    settings: Any, names: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match="--bnb_quantization_config_path") as caught:
        memory_options(parse(*given(path, settings)), CPU)
    message = str(caught.value)
    assert str(path) in message and names in message.replace(str(path), "") and "\n" not in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--bnb_quantization_config_path .*absent\.json"):
        memory_options(parse("--bnb_quantization_config_path", str(tmp_path / "absent.json")), CPU)


# --- what to try where memory is lacking


def test_the_flags_to_try_are_those_not_given_yet_cheapest_first() -> None:
    loading = flags_to_try(parse(), None, on_gpu=True)
    assert loading[0] == "--mixed_precision bf16" and not any("batch" in flag for flag in loading)
    first = ["--mixed_precision bf16", "--train_batch_size 32", "--gradient_checkpointing"]
    assert flags_to_try(parse(), 64, on_gpu=True) == [
        *first,
        "--offload_models",
        "--offload_trajectories",
        "--load_in_4bit",
    ]
    # What lies in main memory saves none there.
    assert flags_to_try(parse(), 64, on_gpu=False) == [*first, "--load_in_4bit"]
    given = ["--mixed_precision", "bf16", "--gradient_checkpointing", "--offload_models", "--load_in_8bit"]
    assert flags_to_try(parse(*given), 2, on_gpu=True) == [
        "--offload_trajectories",
        "--train_batch_size 1",
        "--load_in_4bit in place of --load_in_8bit",
    ]


def test_following_the_advice_to_the_end_ends_with_no_flag_left() -> None:
    line: list[str] = []
    said, batch_size = [], 64
    while flags_left := flags_to_try(parse(*line), batch_size, on_gpu=True):
        said.append(flags_left[0])
        name, *value = flags_left[0].split()
        if name == "--train_batch_size":
            batch_size = int(value[0])
        else:
            line += [name, *value]
    assert said[-1] == "--load_in_4bit" and said.count("--gradient_checkpointing") == 1 and batch_size == 1
    assert len(said) == len(set(said)) and "--" not in out_of_memory([], on_gpu=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_may_be_written_by_any_editor(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "written.json"
    path.write_text('{"load_in_4bit": true}', encoding=encoding)
    assert read_quantization(path) == {"load_in_4bit": True}
