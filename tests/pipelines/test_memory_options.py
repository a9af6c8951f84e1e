from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig

from pipelines.memory import add_memory_arguments, memory_options

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def parse(*line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mixed_precision", default="no")
    add_memory_arguments(parser)
    return parser.parse_args(line)


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
    ("line", "device", "says"),
    [
        (["--mixed_precision", "fp16"], CPU, "needs a GPU"),
        (["--load_in_8bit", "--load_in_4bit"], CPU, "--load_in_8bit and --load_in_4bit exclude one another"),
        (["--load_in_8bit", "--bnb_quantization_config_path", "x.json"], CPU, "exclude one another"),
        (["--load_in_4bit"], GPU, "add --mixed_precision bf16"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(line: list[str], device: torch.device, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        memory_options(parse(*line), device)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "is not JSON"),
        ([1], "must hold a JSON object"),
        (
            {"load_in_4bit": True, "bits": 3, "a": 1},
            "unknown keys: a, bits; the known ones are bnb_4bit_compute_dtype",
        ),
        ({"load_in_4bit": True, "load_in_8bit": True}, "only one can be used"),
        ({"load_in_4bit": "yes"}, "must be a boolean"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float3"}, "float3"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "nf4"),
        (
            {"load_in_8bit": True, "llm_int8_has_fp16_weight": True},
            "llm_int8_has_fp16_weight can only be false",
        ),
        ({}, "must set load_in_8bit or load_in_4bit"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    settings: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        memory_options(parse(*given(tmp_path / "config.json", settings)), CPU)
    assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.json cannot be read: No such file"):
        memory_options(parse("--bnb_quantization_config_path", str(tmp_path / "absent.json")), CPU)
