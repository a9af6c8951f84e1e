"""`python -m hub convert` and `python -m hub fuse`, from the command line to the files, and what they say
to those who err."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor

import canvas
from common.errors import friendly_errors
from hub.__main__ import main, parse_config
from hub.adapter import load_adapter, read_adapter_metadata, save_adapter
from hub.commands.merge import MergeConfig
from hub.concepts import kohya_name
from hub.files import read_file
from pipelines.base import load_pipeline


def run(*arguments: str | Path) -> None:
    main(parse_config([str(argument) for argument in arguments]))


def draw(pipe: DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(
        ["a cat in Van Gogh style", "a tree"], num_inference_steps=3, generator=generator, output_type="np"
    ).images


@pytest.fixture
def adapter_dir(trained: UNet2DConditionModel, tmp_path: Path) -> Path:
    save_adapter(
        tmp_path / "adapter", trained, metadata={"concept": '["cat"]', "base_model_name_or_path": "tiny"}
    )
    return tmp_path / "adapter"


def test_convert_writes_the_twin_beside_the_adapter_or_where_it_is_told(
    adapter_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("convert", "--adapter", adapter_dir)
    twin = adapter_dir / kohya_name(read_adapter_metadata(adapter_dir))
    assert capsys.readouterr().out.startswith(f"wrote {twin}: ")
    run("convert", "--adapter", adapter_dir)  # the same again
    run("convert", "--adapter", adapter_dir, "--output", tmp_path / "new" / "cat.safetensors")
    tensors, header = read_file(twin)
    assert tensors and all(name.startswith("lora_unet_") for name in tensors)
    again, same_header = read_file(tmp_path / "new" / "cat.safetensors")
    assert (
        same_header == header
        and again.keys() == tensors.keys()
        and all(torch.equal(again[name], tensors[name]) for name in tensors)
    )


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_fuse_writes_a_plain_pipeline_that_draws_what_the_adapter_draws(
    scale: float,
    adapter_dir: Path,
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [] if scale == 1 else ["--scale", str(scale)]
    run(
        "fuse",
        "--adapter",
        adapter_dir,
        "--pretrained_model_name_or_path",
        tiny_pipeline_dir,
        "--output_dir",
        tmp_path / "fused",
        *given,
    )
    assert capsys.readouterr().out.count("\n") == 1
    pipe = load_pipeline(tiny_pipeline_dir)
    base = draw(pipe)
    pipe.set_adapters(load_adapter(pipe, adapter_dir), scale)
    expected = draw(pipe)
    assert (np.abs(expected - base).max() > 1e-2) == (scale > 0)

    fused = DiffusionPipeline.from_pretrained(tmp_path / "fused", use_safetensors=True)
    assert np.abs(draw(fused) - expected).max() <= 1e-4
    assert not any(isinstance(module, BaseTunerLayer) for module in fused.unet.modules())
    assert load_file(tmp_path / "fused/unet/diffusion_pytorch_model.safetensors").keys() == pipe_keys(
        tiny_pipeline_dir
    )
    files = [path for path in (tmp_path / "fused").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    for path in files:
        assert str(tiny_pipeline_dir.parent).encode() not in path.read_bytes(), path
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "fused"}


def pipe_keys(directory: Path) -> set[str]:
    return load_file(directory / "unet/diffusion_pytorch_model.safetensors").keys()


def test_fuse_takes_the_base_that_the_adapter_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(canvas.PIPELINE, subfolder="unet")
    unet.add_adapter(
        LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["attn2.to_k", "attn2.to_v"])
    )
    save_adapter(tmp_path / "adapter", unet, metadata={"base_model_name_or_path": "bundled canvas"})
    run("fuse", "--adapter", tmp_path / "adapter", "--output_dir", tmp_path / "fused")
    pipe = load_pipeline(canvas.PIPELINE)
    load_adapter(pipe, tmp_path / "adapter")
    assert np.abs(draw(load_pipeline(tmp_path / "fused")) - draw(pipe)).max() <= 1e-4


def test_fuse_keeps_the_safety_checker(adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    base = load_pipeline(tiny_pipeline_dir)
    base.register_modules(
        safety_checker=StableDiffusionSafetyChecker(
            CLIPConfig(text_config=small, vision_config=small, projection_dim=8)
        ),
        feature_extractor=CLIPImageProcessor(),
    )
    base.save_pretrained(tmp_path / "base")
    run(
        "fuse",
        "--adapter",
        adapter_dir,
        "--pretrained_model_name_or_path",
        tmp_path / "base",
        "--output_dir",
        tmp_path / "fused",
    )
    fused = DiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert isinstance(fused.safety_checker, StableDiffusionSafetyChecker)
    assert load_pipeline(tmp_path / "fused").safety_checker is None


def test_an_interrupted_fuse_leaves_nothing(
    adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(
            "fuse",
            "--adapter",
            adapter_dir,
            "--pretrained_model_name_or_path",
            tiny_pipeline_dir,
            "--output_dir",
            tmp_path / "fused",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_user_errors(
    adapter_dir: Path,
    tiny_pipeline_dir: Path,
    wide_pipeline_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    (tmp_path / "precious.safetensors").write_text("keep me")
    given, new, fuse = (
        ["--adapter", adapter_dir],
        ["--output_dir", tmp_path / "new"],
        ["fuse", "--pretrained_model_name_or_path", tiny_pipeline_dir],
    )
    for arguments, message in [
        (["convert", "--adapter", tmp_path / "absent"], "neither a local directory"),
        (["convert", "--adapter", tmp_path / "full"], "holds no adapter"),
        (["convert", *given, "--output", tmp_path / "precious.safetensors"], "exists; name another file"),
        (["convert", *given, "--output", tmp_path / "cat.bin"], "must end in .safetensors"),
        ([*fuse, "--adapter", tmp_path / "absent", *new], "neither a local directory"),
        ([*fuse, *given, "--output_dir", tmp_path / "full"], "not an empty directory"),
        ([*fuse, *given, "--output_dir", tmp_path / "precious.safetensors"], "not an empty directory"),
        ([*fuse, *given, *new, "--scale", "nan"], "--scale: must be a finite number"),
        (["fuse", *given, *new], "local pipeline called 'tiny'"),
        (["fuse", *given, *new, "--pretrained_model_name_or_path", tmp_path / "full"], "no model_index.json"),
        (
            ["fuse", *given, *new, "--pretrained_model_name_or_path", wide_pipeline_dir],
            "does not fit this pipeline",
        ),
    ]:
        with pytest.raises(SystemExit) as stop, friendly_errors():
            run(*arguments)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and message in said, (arguments, said)
        assert "error: " in said.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "full", "precious.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--help"], 0, "convert"), (["convert", "--adapter", "absent"], 2, "error: absent")],
)
def test_the_command_itself(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hub", *arguments])
    monkeypatch.delitem(sys.modules, "hub.__main__", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("hub", run_name="__main__")
    said = capsys.readouterr()
    assert stop.value.code == code and message in said.out + said.err


def test_configs_name_the_base_by_its_public_name(
    adapter_dir: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    run(
        "fuse",
        "--adapter",
        adapter_dir,
        "--pretrained_model_name_or_path",
        tiny_pipeline_dir,
        "--output_dir",
        tmp_path / "fused",
    )
    names = [
        json.loads((tmp_path / "fused" / config).read_text()).get("_name_or_path")
        for config in ("model_index.json", "unet/config.json")
    ]
    assert names == ["", ""]


def test_a_file_of_settings_may_hold_what_the_command_line_gives_by_place(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text("adapters: [a, b]\noutput_dir: out\nrank: 4\n")
    given = ["merge", "--config", str(file), "--rank", "2"]
    assert parse_config(given) == MergeConfig((Path("a"), Path("b")), Path("out"), weights=None, rank=2)
    assert parse_config([*given, "c"]).adapters == (Path("c"),)
