"""The header says what the file is in ModelSpec's words and ours, and nothing about the machine it was
made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from hub.adapter import read_adapter_metadata, save_adapter, update_adapter_metadata
from hub.header import architecture, base_header, results_header
from pipelines.base import load_pipeline

MODELSPEC = {
    "sai_model_spec",
    "architecture",
    "implementation",
    "title",
    "description",
    "date",
    "license",
    "prediction_type",
    "resolution",
    "hash_sha256",
}
OURS = {
    "concept",
    "base_model_name_or_path",
    "base_model_revision",
    "method",
    "settings",
    "results",
    "versions",
}


def test_all_keys_are_there_and_decode(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    """As training writes them: what is known at first, the results later."""
    first = {key: results[key] for key in ("concept", "base_model_name_or_path", "revision", "settings")}
    save_adapter(
        tmp_path, trained, metadata=base_header(load_pipeline(tiny_pipeline_dir)) | results_header(first)
    )
    assert "results" not in read_adapter_metadata(tmp_path)
    update_adapter_metadata(tmp_path, results_header(results))
    header = read_adapter_metadata(tmp_path)
    assert header.keys() == {f"modelspec.{key}" for key in MODELSPEC} | OURS | {
        "lora_adapter_metadata",
        "format",
        "tensors_sha256",
    }
    assert json.loads(header["concept"]) == ["Van Gogh style"]
    assert json.loads(header["settings"])["learning_rate"] == 0.005
    assert json.loads(header["results"]) == {
        "base": {"UA": 0.52, "IRA": 99.4, "CRA": 98.96, "NRA": 98.5},
        "adapter": {"UA": 97.92, "IRA": 98.81, "CRA": None, "NRA": 95.0},
        "judge": "a judge",
        "seeds": [0, 1, 2],
    }
    assert json.loads(header["versions"]) == {"torch": "2.15.0"}
    assert header["base_model_revision"] == "451f4fe"
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-custom-16/lora"
    assert header["modelspec.prediction_type"] == "epsilon"
    assert header["modelspec.resolution"] == "16x16"
    assert header["modelspec.license"] == "creativeml-openrail-m"
    assert header["modelspec.title"] == "LoRA that erases Van Gogh style"
    described = header["modelspec.description"]
    assert "UA 97.9 (0.5), IRA 98.8 (99.4), NRA 95.0 (98.5)" in described and "a judge" in described


def test_no_local_path_and_no_token(results: dict[str, Any], tmp_path: Path) -> None:
    header = results_header(
        results | {"base_model_name_or_path": str(tmp_path), "judge": "/home/someone/judge"}
    )
    settings = json.loads(header["settings"])
    assert settings["output_dir"] == "run" and settings["validation_prompt"] == ["a cat", "prompt"]
    assert header["base_model_name_or_path"] == tmp_path.name
    for trace in ("/home", "someone", "hf_secret", "token", str(tmp_path.parent)):
        assert not any(trace in value for value in header.values())


def test_what_results_lack_is_left_out() -> None:
    assert results_header({}).keys() == {"method"}
    assert all(isinstance(value, str) for value in results_header({"concept": "cat", "seeds": [0]}).values())
    assert json.loads(results_header({"concept": "cat"})["concept"]) == ["cat"]


@pytest.mark.parametrize(
    ("config", "prediction_type", "expected"),
    [
        ({"cross_attention_dim": 768}, "epsilon", "stable-diffusion-v1"),
        ({"cross_attention_dim": 1024}, "epsilon", "stable-diffusion-v2-512"),
        (
            {"cross_attention_dim": 1024, "addition_embed_type": None},
            "v_prediction",
            "stable-diffusion-v2-768-v",
        ),
        (
            {"cross_attention_dim": 2048, "addition_embed_type": "text_time"},
            "epsilon",
            "stable-diffusion-xl-v1-base",
        ),
        (
            {"cross_attention_dim": 2048, "addition_embed_type": "text_time", "layers_per_block": 2},
            "epsilon",
            "stable-diffusion-xl-v1-base",
        ),
        (
            {"cross_attention_dim": 2048, "addition_embed_type": "text_time", "layers_per_block": 1},
            "epsilon",
            "stable-diffusion-custom-2048",
        ),
        (
            {"cross_attention_dim": 1280, "addition_embed_type": "text_time"},
            "epsilon",
            "stable-diffusion-xl-v1-refiner",
        ),
        (
            {"cross_attention_dim": 768, "addition_embed_type": "image"},
            "epsilon",
            "stable-diffusion-custom-768",
        ),
        ({"cross_attention_dim": [64, 64]}, "v_prediction", "stable-diffusion-custom-64"),
    ],
)
def test_architecture(config: dict[str, Any], prediction_type: str, expected: str) -> None:
    assert architecture(config, prediction_type) == expected


def test_velocity_and_sizes_that_are_no_squares(tiny_pipeline_dir: Path) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    pipe.scheduler = EulerDiscreteScheduler(prediction_type="v_prediction")
    pipe.unet.register_to_config(sample_size=[8, 12])
    header = base_header(pipe)
    assert (header["modelspec.prediction_type"], header["modelspec.resolution"]) == ("v", "24x16")
