from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

import canvas
from environment.base import load_pipeline
from reward.predictor import RewardPredictor
from reward.train import base_samples, cosine_by_noise, distil, main, parse_args


def new_predictor() -> RewardPredictor:
    torch.manual_seed(0)
    return RewardPredictor(4, 8, 6, width=8, condition_dim=16)


def learnable(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and embeddings that their channels' means decide."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 4, generator=generator)
    latents = means[:, :, None, None] + 0.3 * torch.randn(count, 4, 8, 8, generator=generator)
    return latents, F.normalize(torch.cat([means, means[:, :2] * means[:, 2:]], dim=1), dim=-1)


def test_distilling_learns_on_new_latents_and_knows_less_under_noise() -> None:
    predictor, scheduler = new_predictor(), DDIMScheduler()
    held_out = learnable(128, seed=2)
    before = cosine_by_noise(predictor, *held_out, scheduler, torch.Generator().manual_seed(0))
    settings = {"steps": 150, "batch_size": 64, "learning_rate": 3e-3, "ema_decay": 0.99}
    distil(predictor, *learnable(512, seed=1), scheduler, generator=torch.Generator().manual_seed(0), **settings)
    after = cosine_by_noise(predictor, *held_out, scheduler, torch.Generator().manual_seed(0))
    assert list(after) == sorted(after) and after.keys() == before.keys()
    first, last = min(after), max(after)
    assert after[first] > 0.7 > before[first] + 0.3
    assert after[first] > after[last] + 0.3
    assert not predictor.training


def test_the_averaged_weights_are_kept_and_training_is_reproducible() -> None:
    latents, embeddings = learnable(64, seed=1)
    runs = []
    for decay in (0.9, 0.9, 0.0):
        predictor = new_predictor()
        settings = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": decay}
        distil(predictor, latents, embeddings, DDIMScheduler(), generator=torch.Generator().manual_seed(0), **settings)
        runs.append(torch.cat([p.detach().flatten() for p in predictor.parameters()]))
    start = torch.cat([p.detach().flatten() for p in new_predictor().parameters()])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert (runs[0] - start).norm() < (runs[2] - start).norm()  # an average lags behind


def test_scores_of_a_trajectory_are_those_of_its_states() -> None:
    predictor = new_predictor().eval()
    latents, timesteps = torch.randn(3, 5, 4, 8, 8), torch.tensor([800, 600, 400, 200, 0])
    torch.nn.init.normal_(predictor.trunk.blocks[0].film1.to_scale_shift.weight)  # so that the timestep matters
    scores = predictor.score_trajectory(latents, timesteps, batch_size=4)
    assert scores.shape == (3, 5, 6)
    torch.testing.assert_close(scores.norm(dim=-1), torch.ones(3, 5))
    with torch.no_grad():
        for i in range(3):
            torch.testing.assert_close(scores[i], predictor(latents[i], timesteps), atol=1e-5, rtol=1e-4)
        assert (predictor(latents[:, 0], torch.full((3,), 0)) - predictor(latents[:, 0], torch.full((3,), 900))).abs().max() > 1e-3


@pytest.fixture
def pipe(tiny_pipeline_dir: Path) -> StableDiffusionPipeline:
    return load_pipeline(tiny_pipeline_dir)


def test_base_samples_are_as_many_as_asked_for_and_reproducible(pipe: StableDiffusionPipeline) -> None:
    first, again, other = (base_samples(pipe, ["a cat", "a tree", "a car"], 7, 2, 3.0, 4, seed) for seed in (0, 0, 1))
    assert first.shape == (7, 4, 8, 8) and first.isfinite().all()
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_base_samples_are_not_clipped_unless_the_base_says_so(pipe: StableDiffusionPipeline) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(DDIMScheduler(beta_schedule="scaled_linear").config)
    config = {k: v for k, v in pipe.scheduler.config.items() if k != "clip_sample"}
    pipe.scheduler = EulerDiscreteScheduler.from_config(config)
    assert base_samples(pipe, ["a cat"], 4, 3, 5.0, 4, 0).abs().max() > 1.5
    pipe.scheduler = DDIMScheduler(clip_sample=True)
    assert base_samples(pipe, ["a cat"], 4, 3, 5.0, 4, 0).abs().max() < 1.5


def tiny_arguments(pipeline: Path, prompts: Path, output_dir: Path) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(pipeline), "--prompts", str(prompts), "--output_dir", str(output_dir)),
        *("--num_images", "8", "--num_inference_steps", "2", "--sample_batch_size", "4"),
        *("--max_train_steps", "3", "--train_batch_size", "4", "--width", "8"),
    ]


def test_from_prompts_to_a_checkpoint(tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na tree\n# no more\n")
    main(parse_args(tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "reward")))
    predictor = RewardPredictor.from_pretrained(tmp_path / "reward")
    config = predictor.config
    assert config["prompts"] == ["a cat", "a tree"]
    assert (config["in_channels"], config["sample_size"], config["embed_dim"], config["width"]) == (4, 8, 64, 8)
    assert config["clip_model"] is None  # a local directory means nothing on another machine
    assert str(canvas.CLIP) not in (tmp_path / "reward" / "config.json").read_text()
    assert "cosine to the teacher" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["prompts", "pipeline", "long prompt"])
def test_bad_input_is_one_sentence_and_exit_code_2(
    case: str, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text({"prompts": "# none\n", "pipeline": "a cat\n", "long prompt": "supercalifragilistic " * 60}[case])
    pipeline = tmp_path / "absent" / "pipeline" if case == "pipeline" else tiny_pipeline_dir
    monkeypatch.setattr(sys, "argv", ["reward.train", *tiny_arguments(pipeline, prompts, tmp_path / "reward")])
    monkeypatch.delitem(sys.modules, "reward.train")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("reward.train", run_name="__main__")
    assert caught.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert not (tmp_path / "reward").exists()
