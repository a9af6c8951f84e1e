"""A merged adapter does what its parts do together, and says what it is; composing adapters in a pipeline
leaves the base as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_pipelines import FLOWS

from common.errors import friendly_errors
from hub.__main__ import main, parse_config
from hub.adapter import load_adapter, read_adapter_metadata, save_adapter
from hub.card import TRAINING
from hub.factors import Factors, read_factors
from hub.files import read_file
from hub.kohya import save_kohya
from hub.merge import METHOD, merge_adapters, merge_factors, to_file, truncate
from hub.provenance import what_adapter_says
from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base, load_pipeline

Output = Callable[[UNet2DConditionModel], torch.Tensor]
NAME = "pytorch_lora_weights.safetensors"
PARTS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "attention, smaller": {"r": 2, "lora_alpha": 1, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "convolutions": {"r": 2, "lora_alpha": 3, "target_modules": ["to_q", "conv1", "conv_in", "proj_in"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["attn2.to_q", "to_v"],
        "rank_pattern": {"attn2.to_q": 3},
        "alpha_pattern": {"attn2.to_q": 1.0},
    },
    "rank-stabilised": {"r": 3, "lora_alpha": 2, "use_rslora": True, "target_modules": ["to_k", "ff.net.2"]},
}
"""Of different ranks, alphas and targets, which overlap in part."""


@pytest.fixture(scope="session")
def parts(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved adapters for one base, each of another concept."""
    directory = tmp_path_factory.mktemp("parts")
    for seed, (name, settings) in enumerate(PARTS.items()):
        unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(init_lora_weights=False, **settings))
        header = {
            "concept": json.dumps([name]),
            "base_model_name_or_path": "tiny",
            "modelspec.architecture": "tiny/lora",
        }
        save_adapter(directory / name, unet, metadata=header)
    return {name: directory / name for name in PARTS}


@pytest.fixture
def pipe(tiny_pipeline_dir: Path) -> StableDiffusionPipeline:
    return load_pipeline(tiny_pipeline_dir)


def compose(pipe: StableDiffusionPipeline, directories: list[Path], weights: list[float]) -> None:
    pipe.set_adapters([load_adapter(pipe, directory) for directory in directories], weights)


def run(*arguments: str | Path) -> None:
    main(parse_config(["merge", *(str(argument) for argument in arguments)]))


def update(factors: Factors) -> torch.Tensor:
    """What a module's weight gains, flattened to a matrix."""
    return factors.scale * factors.up.flatten(1) @ factors.down.flatten(1)


# --- the same as together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["attention", "convolutions"], [1.0, 1.0]),
        (["attention", "convolutions"], [0.7, -0.5]),
        (["attention", "convolutions"], [0.0, 1.0]),
        (["patterns", "rank-stabilised"], [1.0, 0.3]),
        (list(PARTS), [0.5, 0.3, -1.0, 1.5, 0.7]),
    ],
)
def test_the_merged_adapter_does_what_all_do_under_set_adapters(
    names: list[str],
    weights: list[float],
    parts: dict[str, Path],
    pipe: StableDiffusionPipeline,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    directories = [parts[name] for name in names]
    compose(pipe, directories, weights)
    together = output(pipe.unet)
    pipe.unload_lora_weights()

    merge_adapters(directories, weights, tmp_path / "merged")
    load_adapter(pipe, tmp_path / "merged")
    assert (together - base_output).abs().max() > 1e-3
    assert (output(pipe.unet) - together).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", FLOWS)
def test_adapters_of_transformers_are_merged_alike(
    kind: str, flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    backbone = Backbone.of(load_base(BaseConfig(str(flow_dirs[kind]), resolution=16)))
    conditioning = backbone.encode_prompts(["a cat"])
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))

    def velocity() -> torch.Tensor:
        with torch.no_grad():
            return backbone.output(x, torch.tensor(500.0), conditioning, 1.0)

    directories = [tmp_path / name for name in ("one", "other")]
    for seed, directory in enumerate(directories):
        denoiser = Backbone.of(load_pipeline(flow_dirs[kind])).denoiser
        torch.manual_seed(seed)
        targets = list(backbone.lora_targets)[seed:]
        denoiser.add_adapter(
            LoraConfig(r=2 + seed, lora_alpha=3, init_lora_weights=False, target_modules=targets)
        )
        save_adapter(directory, denoiser)
    before = velocity()
    compose(backbone.pipe, directories, [1.0, -0.5])
    together = velocity()
    backbone.pipe.unload_lora_weights()
    merge_adapters(directories, [1.0, -0.5], tmp_path / "merged")
    load_adapter(backbone.pipe, tmp_path / "merged")
    assert (together - before).abs().max() > 1e-3
    assert (velocity() - together).abs().max() <= 1e-4


def test_modules_that_one_adapter_has_keep_its_rank(parts: dict[str, Path], tmp_path: Path) -> None:
    merge_adapters([parts["attention"], parts["convolutions"]], [1.0, 1.0], tmp_path / "merged")
    tensors, _ = read_file(tmp_path / "merged" / NAME)
    ranks = {name: len(tensor) for name, tensor in tensors.items() if name.endswith(".down.weight")}
    assert {rank for name, rank in ranks.items() if "to_q" in name} == {4 + 2}
    assert {rank for name, rank in ranks.items() if "to_v" in name} == {4}
    assert ranks["unet.conv_in.lora.down.weight"] == 2


def test_an_adapter_with_itself_at_half_the_weight_is_itself(
    parts: dict[str, Path], pipe: StableDiffusionPipeline, output: Output, tmp_path: Path
) -> None:
    load_adapter(pipe, parts["patterns"])
    itself = output(pipe.unet)
    pipe.unload_lora_weights()
    merge_adapters([parts["patterns"]] * 2, [0.5, 0.5], tmp_path / "merged")
    load_adapter(pipe, tmp_path / "merged")
    assert (output(pipe.unet) - itself).abs().max() <= 1e-5
    assert what_adapter_says(tmp_path / "merged")["concept"] == ["patterns"]


def test_matrices_in_half_precision_stay_in_it_and_meet_others_in_the_wider_one() -> None:
    half, single = (
        Factors(torch.ones(2, 3, dtype=dtype), torch.ones(4, 2, dtype=dtype), 2.0)
        for dtype in (torch.float16, torch.float32)
    )
    for pair, dtype in [((half, half), torch.float16), ((half, single), torch.float32)]:
        merged = merge_factors([{"a": one} for one in pair], [1.0, 0.5])["a"]
        kept = truncate({"a": merged}, 1)[0]["a"]
        assert {tensor.dtype for factors in (merged, kept) for tensor in (factors.down, factors.up)} == {
            dtype
        }


def test_kohyas_format_has_the_same_ranks_and_alphas(parts: dict[str, Path], tmp_path: Path) -> None:
    merge_adapters([parts["attention"], parts["convolutions"]], [1.0, 1.0], tmp_path / "merged")
    tensors, _ = read_file(save_kohya(tmp_path / "merged"))
    alphas = {
        name.removesuffix(".alpha"): tensor.item()
        for name, tensor in tensors.items()
        if name.endswith(".alpha")
    }
    assert set(alphas.values()) == {2.0, 4.0, 6.0}
    assert all(len(tensors[f"{module}.lora_down.weight"]) == alpha for module, alpha in alphas.items())


# --- a lower rank ---------------------------------------------------------------------------------------


def test_at_full_rank_nothing_is_lost(
    parts: dict[str, Path],
    pipe: StableDiffusionPipeline,
    output: Output,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compose(pipe, [parts["attention"], parts["convolutions"]], [1.0, 1.0])
    together = output(pipe.unet)
    pipe.unload_lora_weights()
    run(parts["attention"], parts["convolutions"], "--rank", "64", "--output_dir", tmp_path / "merged")
    load_adapter(pipe, tmp_path / "merged")
    assert (output(pipe.unet) - together).abs().max() <= 1e-5
    error = json.loads((tmp_path / "merged" / "results.json").read_text())["relative_error"]
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert error < 1e-6 and re.search(rf"\b{error:.2g}\b", said)
    tensors, _ = read_file(tmp_path / "merged" / NAME)
    assert max(len(tensor) for name, tensor in tensors.items() if name.endswith(".down.weight")) == 6


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_at_a_lower_rank_the_error_is_the_tail_of_the_singular_values(
    rank: int, parts: dict[str, Path]
) -> None:
    adapters = []
    for name in ("attention", "convolutions"):
        tensors, _ = read_file(parts[name] / NAME)
        settings = {"unet.lora_alpha": PARTS[name]["lora_alpha"]}
        adapters.append(read_factors(tensors, {"lora_adapter_metadata": settings}))
    whole = merge_factors(adapters, [1.0, -0.4])
    kept, error = truncate(whole, rank)
    lost = total = 0.0
    for name, factors in whole.items():
        values = torch.linalg.svdvals(update(factors))
        difference = (update(factors) - update(kept[name])).square().sum().item()
        assert kept[name].rank <= rank and kept[name].down.shape[1:] == factors.down.shape[1:]
        assert difference == pytest.approx(values[rank:].square().sum().item(), abs=1e-6 * total + 1e-5)
        lost, total = lost + difference, total + values.square().sum().item()
    assert 0 < error < 1 and error == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_updates_that_cancel_have_no_relative_error() -> None:
    one = {"a": Factors(torch.eye(2), torch.eye(2), 2.0)}
    kept, error = truncate(merge_factors([one, one], [1.0, -1.0]), 1)
    assert error == 0 and not update(kept["a"]).any()


# --- in the pipeline ------------------------------------------------------------------------------------


def weights_of(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )


def test_a_merged_adapter_loads_as_any_other(
    parts: dict[str, Path], pipe: StableDiffusionPipeline, output: Output, tmp_path: Path
) -> None:
    merge_adapters([parts["attention"], parts["patterns"]], [1.0, 1.0], tmp_path / "merged")
    before = weights_of(pipe)
    pipe.load_lora_weights(tmp_path / "merged")
    by_diffusers = output(pipe.unet)
    pipe.unload_lora_weights()
    load_adapter(pipe, tmp_path / "merged")
    assert torch.equal(output(pipe.unet), by_diffusers)
    pipe.unload_lora_weights()
    assert same(before, weights_of(pipe))


def test_an_adapter_that_is_deleted_leaves_the_other_and_unloading_the_base(
    parts: dict[str, Path], pipe: StableDiffusionPipeline, output: Output, base_output: torch.Tensor
) -> None:
    before = weights_of(pipe)
    first = load_adapter(pipe, parts["attention"])
    alone = output(pipe.unet)
    second = load_adapter(pipe, parts["convolutions"])
    pipe.set_adapters([first, second], [1.0, 0.5])
    assert (output(pipe.unet) - alone).abs().max() > 1e-3
    pipe.delete_adapters(second)
    assert torch.equal(output(pipe.unet), alone)
    pipe.unload_lora_weights()
    assert same(before, weights_of(pipe)) and torch.equal(output(pipe.unet), base_output)


def test_fusing_adds_both_at_their_weights_and_unfusing_takes_them_off_up_to_rounding(
    parts: dict[str, Path], pipe: StableDiffusionPipeline, output: Output
) -> None:
    before = weights_of(pipe)
    compose(pipe, [parts["attention"], parts["convolutions"]], [1.0, 0.5])
    together = output(pipe.unet)
    pipe.fuse_lora(adapter_names=pipe.get_active_adapters())
    assert (output(pipe.unet) - together).abs().max() <= 1e-5
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    after = weights_of(pipe)
    assert before.keys() == after.keys()
    assert max((tensor - after[name]).abs().max() for name, tensor in before.items()) <= 1e-6


def test_hotswap_puts_a_merged_adapter_in_the_place_of_another(
    parts: dict[str, Path],
    pipe: StableDiffusionPipeline,
    output: Output,
    base_output: torch.Tensor,
    tmp_path: Path,
) -> None:
    merge_adapters([parts["attention"], parts["attention, smaller"]], [1.0, 1.0], tmp_path / "merged")
    before = weights_of(pipe)
    load_adapter(pipe, tmp_path / "merged")
    expected = output(pipe.unet)
    pipe.unload_lora_weights()

    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(parts["attention"], adapter_name="eraser")
    pipe.load_lora_weights(tmp_path / "merged", adapter_name="eraser", hotswap=True)
    assert (output(pipe.unet) - expected).abs().max() <= 1e-5
    pipe.unload_lora_weights()
    assert same(before, weights_of(pipe)) and torch.equal(output(pipe.unet), base_output)


def test_as_many_adapters_as_you_like_are_loaded_whatever_modules_they_are_on(
    parts: dict[str, Path], pipe: StableDiffusionPipeline
) -> None:
    names = [load_adapter(pipe, directory) for directory in parts.values()]
    assert pipe.get_list_adapters() == {"unet": names} and len(set(names)) == len(parts)


# --- what it says ---------------------------------------------------------------------------------------


def test_header_results_and_card(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    run(
        parts["attention"],
        parts["convolutions"],
        parts["patterns"],
        "--weights",
        "1",
        "0.7",
        "-1",
        "--output_dir",
        merged,
    )
    assert capsys.readouterr().out == f"wrote {merged}: one adapter out of 3.\n"
    twin = "no-attention-convolutions.safetensors"
    assert sorted(path.name for path in merged.iterdir()) == ["README.md", twin, NAME, "results.json"]
    settings = {
        "adapters": ["attention", "convolutions", "patterns"],
        "weights": [1.0, 0.7, -1.0],
        "rank": None,
    }

    results = json.loads((merged / "results.json").read_text())
    assert results["concept"] == ["attention", "convolutions"]  # at a negative weight nothing is erased
    assert results["base_model_name_or_path"] == "tiny" and results["settings"] == settings
    assert not {"base", "adapter", "training", "judge"} & results.keys()

    header = read_adapter_metadata(merged)
    assert json.loads(header["concept"]) == ["attention", "convolutions"]
    assert header["base_model_name_or_path"] == "tiny" and header["modelspec.architecture"] == "tiny/lora"
    assert json.loads(header["settings"]) == settings
    assert header["method"] == METHOD and "results" not in header
    assert what_adapter_says(merged) == {
        "concept": ["attention", "convolutions"],
        "base": "tiny",
        "revision": None,
        "without_t5": False,
    }

    card = (merged / "README.md").read_text()
    assert (
        re.search("^# .*attention, convolutions$", card, re.MULTILINE)
        and "| --weights | 1, 0.7, -1 |" in card
    )
    assert METHOD in card and TRAINING not in card and "| base |" not in card
    assert str(tmp_path) not in card


def test_an_adapter_from_elsewhere_says_neither_concept_nor_base(
    parts: dict[str, Path],
    trained: UNet2DConditionModel,
    pipe: StableDiffusionPipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "style", unet_lora_layers=layers)
    run(parts["attention"], tmp_path / "style", "--output_dir", tmp_path / "merged")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and str(tmp_path / "style") in warning and re.search(r"\btiny\b", warning)
    assert str(parts["attention"]) not in warning
    assert what_adapter_says(tmp_path / "merged") == {
        "concept": ["attention"],
        "base": "tiny",
        "revision": None,
        "without_t5": False,
    }
    load_adapter(pipe, tmp_path / "merged")


# --- refusals -------------------------------------------------------------------------------------------


def test_user_errors(
    parts: dict[str, Path], trained: UNet2DConditionModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, new = parts["attention"], parts["convolutions"], ["--output_dir", tmp_path / "new"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    save_adapter(tmp_path / "foreign", trained, metadata={"base_model_name_or_path": "owner/other"})
    tensors, _ = read_file(first / NAME)
    damages = {
        "wider": {
            name: tensor.repeat(1, 2) if ".down." in name else tensor for name, tensor in tensors.items()
        },
        "torn": {name: tensor[:1] if ".down." in name else tensor for name, tensor in tensors.items()},
        "dora": tensors | {"unet.mid_block.lora_magnitude_vector": torch.ones(2)},
    }
    for name, damaged in damages.items():
        (tmp_path / name).mkdir()
        save_file({key: tensor.contiguous() for key, tensor in damaged.items()}, tmp_path / name / NAME)
    for arguments, message in [
        ([first, *new], "at least two adapters"),
        ([first, second, "--weights", "1", *new], "--weights has 1 numbers for 2 adapters"),
        ([first, second, "--weights", "1", "nan", *new], "must be a finite number"),
        ([first, second, "--weights", "0", "0", *new], "--weights 0 0 must be"),
        ([first, second, "--rank", "0", *new], "--rank: must be at least 1"),
        ([first, second, "--output_dir", tmp_path / "full"], "is not an empty directory"),
        ([first, tmp_path / "absent", *new], "neither a local directory"),
        ([first, tmp_path / "full", *new], "holds no adapter"),
        (
            [first, tmp_path / "foreign", *new],
            "different bases (attention for tiny, foreign for owner/other)",
        ),
        ([first, tmp_path / "wider", *new], "The adapters do not fit each other"),
        ([first, tmp_path / "torn", *new], "do not fit each other: (1, "),
        ([first, tmp_path / "dora", *new], "and has unet.mid_block.lora_magnitude_vector"),
    ]:
        with pytest.raises(SystemExit) as stop, friendly_errors():
            run(*arguments)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and message in said.splitlines()[-1] and "Traceback" not in said, said
    assert not (tmp_path / "new").exists() and [path.name for path in (tmp_path / "full").iterdir()] == [
        "precious.txt"
    ]


def test_the_settings_in_the_file_name_each_module_once() -> None:
    adapter = {
        name: Factors(torch.ones(rank, 3), torch.ones(4, rank), rank)
        for name, rank in [("a.to_q", 2), ("b.to_q", 2), ("to_q", 3)]
    }
    layers, config = to_file(adapter)
    assert len(layers) == 6
    assert config == {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["a.to_q", "b.to_q", "to_q"],
        "rank_pattern": {"^to_q": 3},
        "alpha_pattern": {"^to_q": 3},
    }
