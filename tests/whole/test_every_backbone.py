"""The whole way on a base of every class: reward predictor, its proof, critic, adapter, evaluation, fused
pipeline; each by its own command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from original_layout import save_original
from safetensors.torch import load_file
from tiny_pipelines import BACKBONES, FLOWS, TINY_PROMPTS, save_sd1, save_sdxl

import canvas
import critic.train
import evaluation.__main__ as evaluation_command
import evaluation.predictor.__main__ as predictor_command
import hub.__main__ as hub
import reward.train
import train_unlearn_lora as script
from common.network import CheckpointError
from critic.network import ValueNetwork
from hub.adapter import load_adapter
from pipelines.backbone import Backbone
from pipelines.base import load_pipeline
from pipelines.generate import evaluation_mode
from reward.predictor import RewardPredictor
from training.config import parse_config
from training.setup import prepare

CLIP = ["--clip_model", f"local-dir:{canvas.CLIP}"]
FEW_STEPS = ["--num_inference_steps", "4"]
QUICK = [
    *(
        "--max_train_iterations",
        "1",
        "--images_per_iteration",
        "3",
        "--retain_rollouts",
        "3",
        "--retain_batch_size",
        "2",
        "--warmup_rollouts",
        "6",
    ),
    *(
        "--critic_warmup_steps",
        "1",
        "--critic_steps",
        "1",
        "--masked_steps",
        "1",
        "--evaluation_seeds",
        "--validation_steps",
        "0",
    ),
    *("--num_validation_images", "2", "--report_to", "none", "--gamma", "0.5"),
]


def lines(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(texts))
    return str(path)


def train_reward(base: list[str], directory: Path, prompts: str) -> RewardPredictor:
    few = [
        "--num_images",
        "6",
        "--sample_batch_size",
        "3",
        "--max_train_steps",
        "2",
        "--train_batch_size",
        "4",
        "--width",
        "8",
    ]
    reward.train.main(
        reward.train.parse_config(
            [*base, *CLIP, "--prompts", prompts, *FEW_STEPS, *few, "--output_dir", str(directory)]
        )
    )
    return RewardPredictor.from_pretrained(directory)


def train_adapter(base: list[str], directory: Path, *more: str) -> dict[str, Any]:
    script.main(
        parse_config(
            [
                *base,
                *CLIP,
                *FEW_STEPS,
                *QUICK,
                "--concept",
                "Van Gogh style",
                "--output_dir",
                str(directory),
                *more,
            ]
        )
    )
    return json.loads((directory / "results.json").read_text())


def pictures(pipe: DiffusionPipeline, **size: int) -> np.ndarray:
    with evaluation_mode(pipe):
        return pipe(
            ["a cat image in Van Gogh style"],
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **size,
        ).images


@pytest.mark.parametrize("kind", [*BACKBONES, *FLOWS])
def test_every_command_knows_every_backbone(
    kind: str, pipeline_dirs: dict[str, Path], flow_dirs: dict[str, Path], tmp_path: Path
) -> None:
    directory = (pipeline_dirs | flow_dirs)[kind]
    base = [
        "--pretrained_model_name_or_path",
        str(directory),
        *(["--resolution", "16"] * (kind in ("flux", "z-image"))),
    ]
    prompts = lines(tmp_path / "prompts.txt", TINY_PROMPTS)
    predictor = train_reward(base, tmp_path / "reward", prompts)
    pipe = load_pipeline(directory)
    name = type(pipe).__name__
    recorded = predictor.config["origin"]["base"]
    assert (
        recorded["pipeline_class"] == name
        and recorded["latent_shape"] == [16 if kind in FLOWS else 4, 8, 8]
        and predictor.config["sample_size"] == 8
    )
    rewarded = [*base, "--reward_model_name_or_path", str(tmp_path / "reward")]

    few = ["--num_latents", "9", "--eval_batch_size", "4", "--num_inference_steps", "2"]
    predictor_command.main(
        predictor_command.parse_config([*rewarded, *CLIP, *few, "--output_dir", str(tmp_path / "proof")])
    )
    proof = json.loads((tmp_path / "proof" / "reward_predictor.json").read_text())
    assert all(
        scorer[of]["means"]["all"]["cosine"] is not None
        for scorer in proof["scorers"].values()
        for of in proof["sets"]
    )

    few = [*FEW_STEPS, "--num_rollouts", "6", "--max_train_steps", "1", "--train_states", "8"]
    critic.train.main(
        critic.train.parse_config(
            [*rewarded, *CLIP, *few, "--concept", "Van Gogh style", "--output_dir", str(tmp_path / "critic")]
        )
    )
    assert ValueNetwork.from_pretrained(tmp_path / "critic").config["pipeline_class"] == name

    # A flow's last noise level but one is nearly none. Random pictures are not retained.
    kept = ["--max_retain_drop", "10", *(["--masked_steps", "2"] * (kind in FLOWS))]
    given = ["--critic_model_name_or_path", str(tmp_path / "critic"), *kept]
    results = train_adapter(rewarded, tmp_path / "adapter", *given)
    assert results["training"]["first_ratio_deviation"] == 0 and results["pipeline_class"] == name

    given = [*base, "--adapter", str(tmp_path / "adapter")]
    judged = [
        *CLIP,
        "--retain_prompts",
        prompts,
        "--seeds",
        "0",
        "--num_inference_steps",
        "2",
        "--output_dir",
        str(tmp_path / "judged"),
    ]
    evaluation_command.main(evaluation_command.parse_config([*given, *judged]))
    assert json.loads((tmp_path / "judged" / "results.json").read_text())["changed_images"] > 0

    hub.main(hub.parse_config(["fuse", *given, "--output_dir", str(tmp_path / "fused")]))
    fused = DiffusionPipeline.from_pretrained(tmp_path / "fused", use_safetensors=True)
    assert type(fused) is type(pipe) and fused.scheduler.config.items() >= pipe.scheduler.config.items()
    size = {"height": 16, "width": 16}
    # Loading an adapter freezes the network, by which PyTorch chooses how a Linear layer is computed.
    Backbone.of(pipe).denoiser.requires_grad_(False)
    before = pictures(pipe, **size)
    load_adapter(pipe, tmp_path / "adapter")
    adapted = pictures(pipe, **size)
    assert np.abs(pictures(fused, **size) - adapted).max() <= 1e-3 < np.abs(before - adapted).max()
    pipe.disable_lora()
    assert np.array_equal(pictures(pipe, **size), before)


def test_networks_of_one_class_of_base_are_refused_by_another(
    pipeline_dirs: dict[str, Path], tmp_path: Path
) -> None:
    """Latents of the same shape, which mean something else."""
    prompts = lines(tmp_path / "prompts.txt", TINY_PROMPTS)
    train_reward(["--pretrained_model_name_or_path", str(pipeline_dirs["sd1"])], tmp_path / "reward", prompts)
    other = [
        "--pretrained_model_name_or_path",
        str(pipeline_dirs["sdxl"]),
        "--reward_model_name_or_path",
        str(tmp_path / "reward"),
    ]
    config = parse_config(
        [*other, *CLIP, *FEW_STEPS, *QUICK, "--concept", "cat", "--output_dir", str(tmp_path / "adapter")]
    )
    with pytest.raises(CheckpointError, match=r"StableDiffusionPipeline.*StableDiffusionXLPipeline"):
        prepare(config)


@pytest.mark.parametrize("save", [save_sd1, save_sdxl])
def test_latents_that_are_not_square_are_trained_on(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "base", latent_size=(8, 12))
    base, prompts = (
        ["--pretrained_model_name_or_path", str(tmp_path / "base")],
        lines(tmp_path / "prompts.txt", TINY_PROMPTS),
    )
    predictor = train_reward(base, tmp_path / "reward", prompts)
    assert predictor.config["sample_size"] == [8, 12]
    results = train_adapter(
        [*base, "--reward_model_name_or_path", str(tmp_path / "reward")], tmp_path / "adapter"
    )
    assert results["training"]["first_ratio_deviation"] == 0
    pipe = load_pipeline(tmp_path / "base")
    before = pictures(pipe, height=16, width=24)
    load_adapter(pipe, tmp_path / "adapter")
    assert (
        before.shape == (1, 16, 24, 3) and np.abs(pictures(pipe, height=16, width=24) - before).max() > 1e-4
    )
    square = RewardPredictor(4, 12, 64, width=8, condition_dim=16, prompts=TINY_PROMPTS)
    square.save_pretrained(tmp_path / "square")
    rewarded = [*base, "--reward_model_name_or_path", str(tmp_path / "square")]
    train = [*rewarded, *CLIP, *FEW_STEPS, *QUICK, "--concept", "cat"]
    config = parse_config([*train, "--output_dir", str(tmp_path / "refused")])
    with pytest.raises(CheckpointError, match=r"4x12x12.*4x8x12"):
        prepare(config)


def test_a_checkpoint_in_one_file_and_another_vae_are_trained_like_the_pipeline(
    pipeline_dirs: dict[str, Path], tiny_reward_dir: Path, tmp_path: Path
) -> None:
    """The same weights, the same adapter up to rounding; the card says how such a base is loaded."""
    whole = load_pipeline(pipeline_dirs["sdxl"])
    save_original(whole, tmp_path / "model.safetensors")
    whole.vae.save_pretrained(tmp_path / "vae")
    rewarded = ["--reward_model_name_or_path", str(tiny_reward_dir)]
    file = [
        "--pretrained_model_name_or_path",
        str(tmp_path / "model.safetensors"),
        "--config_name_or_path",
        str(pipeline_dirs["sdxl"]),
    ]
    results = train_adapter([*file, *rewarded], tmp_path / "of-file")
    assert results["base_model_name_or_path"] == "model.safetensors"
    card = (tmp_path / "of-file" / "README.md").read_text()
    assert (
        'StableDiffusionXLPipeline.from_single_file("path/to/model.safetensors")' in card
        and "stable-diffusion-xl" in card
    )
    directory = [
        "--pretrained_model_name_or_path",
        str(pipeline_dirs["sdxl"]),
        "--pretrained_vae_model_name_or_path",
        str(tmp_path / "vae"),
    ]
    results = train_adapter([*directory, *rewarded], tmp_path / "of-directory")
    assert results["settings"]["pretrained_vae_model_name_or_path"] == "vae"
    for text in ((tmp_path / "of-directory" / "results.json").read_text(), card):
        assert str(tmp_path.parent) not in text
    ours, theirs = (
        load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        for name in ("of-file", "of-directory")
    )
    # Weights from one file lie elsewhere in memory, and kernels round by that.
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
