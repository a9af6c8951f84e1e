"""An adapter file restores what was trained, and the base once it is scaled to nothing; what would restore
something else is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from loopback import LoopbackHub
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from common.network import CheckpointError
from common.weights import hashes
from hub.adapter import (
    NoAdapter,
    UnfitAdapter,
    kohya_name,
    load_adapter,
    read_adapter_metadata,
    save_adapter,
    update_adapter_metadata,
)
from hub.files import UnreadableAdapter, read_file
from hub.kohya import save_kohya
from pipelines.base import load_pipeline
from pipelines.generate import adapter_at

Output = Callable[[UNet2DConditionModel], torch.Tensor]
NAME = "pytorch_lora_weights.safetensors"
HEADER = {"concept": '["Van Gogh style"]', "base_model_name_or_path": "bundled canvas"}


def test_round_trip_through_a_stock_pipeline(
    trained: UNet2DConditionModel,
    tiny_pipeline_dir: Path,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    expected = output(trained)
    assert (expected - base_output).abs().max() > 1e-3

    save_adapter(tmp_path, trained, "default", HEADER)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)

    name = pipe.get_active_adapters()[0]
    pipe.set_adapters(name, 0.0)
    assert torch.equal(output(pipe.unet), base_output)
    pipe.set_adapters(name, 1.0)
    assert torch.allclose(output(pipe.unet), expected, atol=1e-5, rtol=0)
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.unet), base_output)


def test_every_kind_of_adapter_is_restored(
    trained_otherwise: UNet2DConditionModel,
    tiny_pipeline_dir: Path,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    save_adapter(tmp_path, trained_otherwise)
    pipe = load_pipeline(tiny_pipeline_dir)
    name = load_adapter(pipe, tmp_path)
    assert pipe.get_active_adapters() == [name]
    assert (output(trained_otherwise) - base_output).abs().max() > 1e-3
    assert (output(pipe.unet) - output(trained_otherwise)).abs().max() <= 1e-5


# --- the header -----------------------------------------------------------------------------------------


def test_header(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, "default", HEADER)
    header = read_adapter_metadata(tmp_path)
    assert {key: header[key] for key in HEADER} == HEADER
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", header["modelspec.date"])
    lora = header["lora_adapter_metadata"]
    assert (lora["unet.r"], lora["unet.lora_alpha"]) == (4, 8)
    assert set(lora["unet.target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}
    assert lora.keys() <= {
        f"unet.{name}" for name in ("r", "lora_alpha", "target_modules", "init_lora_weights")
    }  # older peft knows no others


def test_the_hash_is_that_of_all_bytes_after_the_header(
    trained: UNet2DConditionModel, tmp_path: Path
) -> None:
    content = save_adapter(tmp_path, trained).read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert len(tensors) == sum(t.numel() * 4 for t in load_file(tmp_path / NAME).values())
    assert (
        read_adapter_metadata(tmp_path)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(tensors).hexdigest()
    )


def test_the_header_is_rewritten_and_the_tensors_stay(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained, "default", HEADER)
    save_kohya(tmp_path)
    files = {NAME: NAME, kohya_name(HEADER): "no-cat.safetensors"}
    before = {name: read_file(tmp_path / name) for name in files}
    update_adapter_metadata(tmp_path, {"concept": '["cat"]', "results": "{}"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files.values())
    for name, (tensors, header) in before.items():
        again, changed = read_file(tmp_path / files[name])
        assert changed == header | {"concept": '["cat"]', "results": "{}"}
        assert again.keys() == tensors.keys() and all(
            torch.equal(again[key], tensors[key]) for key in tensors
        )


def test_only_the_file_is_left(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    save_adapter(tmp_path, trained)
    save_kohya(tmp_path)
    save_adapter(tmp_path, trained)  # the twin was that of the adapter before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("step", "error"), [("os.fsync", OSError("no space left")), ("os.replace", KeyboardInterrupt())]
)
def test_an_interrupted_write_keeps_the_old_file(
    step: str,
    error: BaseException,
    trained: UNet2DConditionModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = save_adapter(tmp_path, trained).read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(step, fail)
    for write in (
        lambda: save_adapter(tmp_path, trained, metadata={"concept": "another"}),
        lambda: update_adapter_metadata(tmp_path, HEADER),
    ):
        with pytest.raises(type(error)):
            write()
        assert (tmp_path / NAME).read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1


def test_errors(trained: UNet2DConditionModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'absent'"):
        save_adapter(tmp_path, trained, "absent")
    for taken in ("format", "lora_adapter_metadata", "modelspec.hash_sha256"):
        with pytest.raises(ValueError, match=f"'{taken}'"):
            save_adapter(tmp_path, trained, metadata={taken: "pt"})
        with pytest.raises(ValueError, match=f"'{taken}'"):
            update_adapter_metadata(tmp_path, {taken: "pt"})
    with pytest.raises(UnreadableAdapter, match=NAME):
        read_adapter_metadata(tmp_path)
    with pytest.raises(UnreadableAdapter, match=NAME):
        update_adapter_metadata(tmp_path, {})
    (tmp_path / NAME).write_bytes(b"half a file")
    with pytest.raises(UnreadableAdapter, match=NAME):
        read_adapter_metadata(tmp_path)


# --- loading --------------------------------------------------------------------------------------------

DOWN, UP = (
    f"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.lora.{side}.weight"
    for side in ("down", "up")
)
FAULTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "wrong prefix": (
        lambda tensors: {name.replace("unet.", "transformer."): t for name, t in tensors.items()},
        NAME,
    ),
    "no prefix": (
        lambda tensors: {name.removeprefix("unet."): t for name, t in tensors.items()},
        NAME,
    ),
    "empty": (lambda tensors: {}, NAME),
    "unknown layer": (
        lambda tensors: tensors | {DOWN.replace("to_q", "to_z"): tensors[DOWN].clone()},
        "to_z.lora_A.weight",
    ),
    "unknown component": (
        lambda tensors: tensors | {"critic.lora_A.weight": tensors[DOWN].clone()},
        r"\b1 of 65\b.*critic",
    ),
    "not of a LoRA": (
        lambda tensors: tensors | {"unet.conv_in.weight": tensors[DOWN].clone()},
        NAME,
    ),
    "one layer misnamed": (
        lambda tensors: {name.replace("mid_block", "mid_blok"): t for name, t in tensors.items()},
        "unet.mid_blok",
    ),
    "incomplete": (
        lambda tensors: {name: t for name, t in tensors.items() if name != UP},
        r"\b1 of 64\b.*to_q.lora_B",
    ),
    "another width": (
        lambda tensors: {name: t.repeat(1, 3) for name, t in tensors.items()},
        NAME,
    ),
    "all zero": (
        lambda tensors: {name: t * (".down." in name) for name, t in tensors.items()},
        "lora_B",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_fit_as_a_whole_is_refused_and_the_pipeline_is_as_before(
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
    trained: UNet2DConditionModel,
    tiny_pipeline_dir: Path,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    path = save_adapter(tmp_path, trained, metadata=HEADER)
    tensors, header = read_file(path)
    save_file(damage(tensors), path, metadata={**header, **hashes(damage(tensors))})
    pipe = load_pipeline(tiny_pipeline_dir)
    with pytest.raises(UnfitAdapter, match=message) as refused:
        load_adapter(pipe, tmp_path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    if refused.value.__cause__:  # what diffusers said
        assert " ".join(str(refused.value.__cause__).split()[:3]) in str(refused.value)
    assert len(tensors) == 64 and (
        not damage(tensors) or HEADER["base_model_name_or_path"] in str(refused.value)
    )
    assert not any(pipe.get_list_adapters().values())
    assert torch.equal(output(pipe.unet), base_output)


def test_a_second_adapter_that_is_refused_leaves_the_first(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "good", trained)
    path = save_adapter(tmp_path / "zero", trained)
    save_file({name: torch.zeros_like(t) for name, t in load_file(path).items()}, path)
    pipe = load_pipeline(tiny_pipeline_dir)
    name = load_adapter(pipe, tmp_path / "good")
    with pytest.raises(UnfitAdapter, match="lora_B"):
        load_adapter(pipe, tmp_path / "zero")
    assert pipe.get_list_adapters() == {"unet": [name]}
    pipe.set_adapters(name)
    assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5


def test_half_a_file_no_file_and_several_files(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, tmp_path: Path
) -> None:
    pipe = load_pipeline(tiny_pipeline_dir)
    with pytest.raises(NoAdapter, match=NAME):
        load_adapter(pipe, tmp_path)
    path = save_adapter(tmp_path, trained)
    with pytest.raises(NoAdapter, match=r"other\.safetensors"):
        load_adapter(pipe, tmp_path, weight_name="other.safetensors")
    path.rename(tmp_path / "one.safetensors")
    load_adapter(pipe, tmp_path)
    assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5
    (tmp_path / "two.safetensors").write_bytes(b"half a file")
    with pytest.raises(NoAdapter, match=f" 2 .*{NAME}"):
        load_adapter(pipe, tmp_path)
    with pytest.raises(UnreadableAdapter, match=r"two\.safetensors"):
        load_adapter(pipe, tmp_path, weight_name="two.safetensors")


def test_an_adapter_on_the_hub_is_loaded_at_its_revision_and_nothing_else_is_fetched(
    trained: UNet2DConditionModel,
    tiny_pipeline_dir: Path,
    output: Output,
    loopback_hub: LoopbackHub,
    tmp_path: Path,
) -> None:
    api = loopback_hub.api()
    api.create_repo("someone/adapter")
    path = save_adapter(tmp_path / "adapter", trained)
    (path.parent / "before_after.png").write_bytes(b"a picture")
    good = api.upload_folder(repo_id="someone/adapter", folder_path=path.parent).oid
    save_file({name: torch.zeros_like(t) for name, t in load_file(path).items()}, path)
    api.upload_folder(repo_id="someone/adapter", folder_path=path.parent)

    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, "someone/adapter", revision=good)
    assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5
    with pytest.raises(UnfitAdapter, match="lora_B"):
        load_adapter(load_pipeline(tiny_pipeline_dir), "someone/adapter")
    assert loopback_hub.sent(NAME) and not loopback_hub.sent("before_after.png")
    with pytest.raises(CheckpointError, match="someone/absent"):
        load_adapter(pipe, "someone/absent")


def test_an_adapter_of_the_text_encoder_too_is_loaded_and_checked(
    trained: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, tmp_path: Path
) -> None:
    both = load_pipeline(tiny_pipeline_dir)
    both.text_encoder.add_adapter(
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["q_proj", "out_proj"])
    )
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(trained)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(
            get_peft_model_state_dict(both.text_encoder)
        ),
        unet_lora_adapter_metadata={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        },
        text_encoder_lora_adapter_metadata={
            "r": 2,
            "lora_alpha": 2,
            "target_modules": ["q_proj", "out_proj"],
        },
    )
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, tmp_path)
    assert pipe.get_list_adapters().keys() == {"unet", "text_encoder"}
    assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5

    tensors, header = read_file(tmp_path / NAME)
    removed = next(name for name in tensors if name.startswith("text_encoder.") and ".up." in name)
    kept = {name: t for name, t in tensors.items() if name != removed}
    save_file(kept, tmp_path / NAME, metadata={**header, **hashes(kept)})
    with pytest.raises(ValueError, match="lacks 1 of"):
        load_adapter(load_pipeline(tiny_pipeline_dir), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside the UNet's"])
def test_an_adapter_of_the_text_encoder_is_saved_and_restored(
    beside: bool, trained: UNet2DConditionModel, tiny_pipeline_dir: Path, output: Output, tmp_path: Path
) -> None:
    """Attention and perceptron, with ranks and alphas of their own; at weight 0, disabled or unloaded every
    prompt is encoded as by the base, bit for bit."""

    def states(pipe: StableDiffusionPipeline) -> torch.Tensor:
        return pipe.encode_prompt(["a cat image in Van Gogh style"], "cpu", 1, False)[0]

    made, pipe = (StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir) for _ in range(2))
    torch.manual_seed(2)
    made.text_encoder.add_adapter(
        LoraConfig(
            r=2,
            lora_alpha=3,
            rank_pattern={"fc1": 1},
            alpha_pattern={"fc1": 5},
            init_lora_weights=False,
            target_modules=["layers.0.self_attn.q_proj", "layers.0.mlp.fc1"],
        )
    )
    if beside:
        made.unet = trained
    base, expected = states(pipe), states(made)
    assert not torch.allclose(base, expected, atol=1e-3)
    save_adapter(tmp_path, made.unet, text_encoders={"text_encoder": made.text_encoder})
    name = load_adapter(pipe, tmp_path)
    assert pipe.get_list_adapters().keys() == ({"unet", "text_encoder"} if beside else {"text_encoder"})
    torch.testing.assert_close(states(pipe), expected, atol=1e-6, rtol=1e-5)
    if beside:
        assert (output(pipe.unet) - output(trained)).abs().max() <= 1e-5
    with adapter_at(pipe, 0.0):
        assert torch.equal(states(pipe), base)
    with adapter_at(pipe, 0.5):
        assert not torch.allclose(states(pipe), base, atol=1e-3)
        assert not torch.allclose(states(pipe), expected, atol=1e-3)
    torch.testing.assert_close(states(pipe), expected, atol=1e-6, rtol=1e-5)
    pipe.set_adapters(name, 0.0)
    assert torch.equal(states(pipe), base)
    pipe.unload_lora_weights()
    assert torch.equal(states(pipe), base)
