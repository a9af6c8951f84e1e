from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

import canvas
from common.checkpoints import list_checkpoints
from pipelines.noise import NoiseSchedule
from reward.concept import read_prompts
from reward.concept.vocabulary import asking_for, general_prompts
from reward.distil import CACHE_NAME, Checkpointing, DistilConfig, cosine_by_noise, distil, noisy_batch
from reward.latents import SOURCE_NAME, Latents
from reward.predictor import RewardPredictor
from reward.train import known_prompts, latents_directory, main, parse_config

BRIEF = DistilConfig(steps=12, batch_size=8, learning_rate=3e-3, ema_decay=0.9)


SCHEDULE = NoiseSchedule.of(DDIMScheduler())


def new_predictor(width: int = 8, **settings: bool) -> RewardPredictor:
    torch.manual_seed(0)
    return RewardPredictor(4, 8, 6, width=width, condition_dim=16, **settings)


def learnable(count: int, seed: int) -> Latents:
    """Latents and embeddings that their channels' means decide."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 4, generator=generator)
    latents = means[:, :, None, None] + 0.3 * torch.randn(count, 4, 8, 8, generator=generator)
    return Latents.without_states(
        latents, F.normalize(torch.cat([means, means[:, :2] * means[:, 2:]], dim=1), dim=-1)
    )


def weights(predictor: RewardPredictor) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in predictor.parameters()])


def test_distilling_learns_on_new_latents_and_knows_less_under_noise() -> None:
    predictor, scheduler = new_predictor(), SCHEDULE
    held_out = learnable(128, seed=2)
    before = cosine_by_noise(predictor, held_out, scheduler, torch.Generator().manual_seed(0))
    distil(
        predictor,
        learnable(512, seed=1),
        scheduler,
        DistilConfig(steps=150, batch_size=64, learning_rate=3e-3, ema_decay=0.99),
    )
    after = cosine_by_noise(predictor, held_out, scheduler, torch.Generator().manual_seed(0))
    assert list(after) == sorted(after) and after.keys() == before.keys()
    first, last = min(after), max(after)
    assert after[first] > 0.7 > before[first] + 0.3
    assert after[first] > after[last] + 0.3
    assert not predictor.training


def test_the_averaged_weights_are_kept_and_training_is_reproducible() -> None:
    runs = []
    for decay in (0.9, 0.9, 0.0):
        predictor = new_predictor()
        distil(predictor, learnable(64, seed=1), SCHEDULE, replace(BRIEF, ema_decay=decay))
        runs.append(weights(predictor))
    start = weights(new_predictor())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert (runs[0] - start).norm() < (runs[2] - start).norm()  # an average lags behind


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_an_interrupted_distillation_that_is_resumed_is_the_uninterrupted_one(
    use_8bit_adam: bool, tmp_path: Path
) -> None:
    config, data, scheduler = (
        replace(BRIEF, use_8bit_adam=use_8bit_adam),
        learnable(64, seed=1),
        SCHEDULE,
    )
    whole = new_predictor(
        width=16
    )  # bitsandbytes leaves tensors of less than 4,096 numbers in full precision
    distil(whole, data, scheduler, config, checkpoints=Checkpointing(tmp_path, every=5))
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    for name in ("latest", "checkpoint-5"):
        resumed = new_predictor(width=16)
        distil(resumed, data, scheduler, config, checkpoints=Checkpointing(tmp_path, every=5, resume=name))
        assert torch.equal(weights(resumed), weights(whole))


def test_eight_bit_moments_train_other_weights_but_train() -> None:
    trained = []
    for eight in (False, True):
        predictor = new_predictor()
        distil(predictor, learnable(64, seed=1), SCHEDULE, replace(BRIEF, use_8bit_adam=eight, steps=40))
        trained.append(weights(predictor))
    start = weights(new_predictor())
    assert not torch.equal(*trained)
    assert F.cosine_similarity(trained[0] - start, trained[1] - start, dim=0) > 0.9


def test_the_oldest_checkpoints_are_dropped(tmp_path: Path) -> None:
    distil(
        new_predictor(),
        learnable(16, seed=1),
        SCHEDULE,
        BRIEF,
        checkpoints=Checkpointing(tmp_path, every=3, total_limit=1),
    )
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-9"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate.*0\.003.*0\.001"),
        ({"noise_levels": "clean"}, r"noise_levels.*all.*clean"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    change: dict[str, object], differs: str, tmp_path: Path
) -> None:
    data = learnable(16, seed=1)
    distil(new_predictor(), data, SCHEDULE, BRIEF, checkpoints=Checkpointing(tmp_path, every=6))
    resume = Checkpointing(tmp_path, resume="latest")
    with pytest.raises(ValueError, match=differs):
        distil(new_predictor(), data, SCHEDULE, replace(BRIEF, **change), checkpoints=resume)
    with pytest.raises(ValueError, match=r"images.*\b16\b.*\b15\b"):
        distil(new_predictor(), data[:15], SCHEDULE, BRIEF, checkpoints=resume)
    with pytest.raises(ValueError, match="network"):
        distil(new_predictor(timestep_conditioning=False), data, SCHEDULE, BRIEF, checkpoints=resume)
    empty = Checkpointing(tmp_path / "empty", resume="latest")
    with pytest.raises(ValueError, match="--resume_from_checkpoint"):
        distil(new_predictor(), data, SCHEDULE, BRIEF, checkpoints=empty)


def test_batches_hold_all_noise_levels_or_none() -> None:
    data, scheduler = learnable(5, seed=1), SCHEDULE
    noisy, t, embeddings = noisy_batch(data, scheduler, 4000, "all", torch.Generator().manual_seed(0))
    rows = torch.cdist(embeddings, data.embeddings).argmin(dim=1)
    clean = (noisy == data.latents[rows]).all(dim=(1, 2, 3))
    assert (
        0.07 < clean.float().mean() < 0.13 and (t[clean] == 0).all() and set(rows.tolist()) == set(range(5))
    )
    assert t.min() == 0 and t.max() == 999 and 400 < t[~clean].float().mean() < 600
    alpha = scheduler.signals[t[~clean]].square()[:, None, None, None]
    noise = (noisy[~clean] - alpha.sqrt() * data.latents[rows[~clean]]) / (1 - alpha).sqrt()
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    noisy, t, embeddings = noisy_batch(data, scheduler, 50, "clean", torch.Generator().manual_seed(0))
    assert not t.any() and torch.equal(
        noisy, data.latents[torch.cdist(embeddings, data.embeddings).argmin(dim=1)]
    )


def test_half_of_a_batch_are_states_of_rollouts_where_there_are_any() -> None:
    plain = learnable(5, seed=1)
    states = (
        100 * torch.arange(1, 6)[:, None, None, None, None]
        + torch.arange(3)[:, None, None, None]
        + torch.zeros(5, 3, 4, 8, 8)
    )
    data = replace(plain, states=states.half(), timesteps=torch.tensor([900, 500, 100]))
    noisy, t, embeddings = noisy_batch(data, SCHEDULE, 1000, "all", torch.Generator().manual_seed(0))
    rolled = noisy[:, 0, 0, 0] > 50
    assert 0.45 < rolled.float().mean() < 0.55
    rows = torch.cdist(embeddings[rolled], plain.embeddings).argmin(dim=1)
    steps = (noisy[rolled] - 100 * (rows[:, None, None, None] + 1))[:, 0, 0, 0].long()
    away = t[rolled] - data.timesteps[steps]
    assert (
        set(steps.tolist()) == {0, 1, 2}
        and away.abs().max() <= 167
        and len(away.unique()) > 100
        and 0 <= t.min() <= t.max() <= 999
    )
    assert not (noisy_batch(data, SCHEDULE, 100, "clean", torch.Generator().manual_seed(0))[0] > 50).any()


def test_a_timestep_is_told_nearer_to_its_own_than_to_any_other() -> None:
    """Those of a shifted flow lie close together where there is most noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(16)
    timesteps, plain = scheduler.timesteps, learnable(512, seed=1)
    states = torch.arange(16.0).reshape(1, 16, 1, 1, 1).expand(512, 16, 4, 8, 8) + 100
    data = replace(plain, states=states, timesteps=timesteps)
    noisy, t, _ = noisy_batch(data, NoiseSchedule.of(scheduler), 512, "all", torch.Generator().manual_seed(0))
    rolled = noisy[:, 0, 0, 0] >= 100
    steps = (noisy[rolled, 0, 0, 0] - 100).long()
    nearest = (t[rolled, None] - timesteps[None]).abs().argmin(1)
    assert rolled.sum() > 100 and (nearest == steps).float().mean() > 0.97  # ties


def test_a_clean_twin_knows_clean_latents_and_a_blind_one_treats_all_timesteps_alike() -> None:
    config = DistilConfig(steps=80, batch_size=64, learning_rate=3e-3, ema_decay=0.9, noise_levels="clean")
    clean, blind = new_predictor(), new_predictor(timestep_conditioning=False)
    distil(clean, learnable(256, seed=1), SCHEDULE, config)
    assert cosine_by_noise(clean, learnable(64, seed=2), SCHEDULE, torch.Generator().manual_seed(0))[0] > 0.7
    distil(blind, learnable(64, seed=1), SCHEDULE, BRIEF)
    x = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(blind(x, torch.full((3,), 0)), blind(x, torch.full((3,), 900)))
        assert not torch.equal(clean(x, torch.full((3,), 0)), clean(x, torch.full((3,), 900)))


def test_scores_of_a_trajectory_are_those_of_its_states() -> None:
    predictor = new_predictor().eval()
    latents, timesteps = torch.randn(3, 5, 4, 8, 8), torch.tensor([800, 600, 400, 200, 0])
    torch.nn.init.normal_(
        predictor.trunk.blocks[0].film1.to_scale_shift.weight
    )  # so that the timestep matters
    scores = predictor.score_trajectory(latents, timesteps, batch_size=4)
    assert scores.shape == (3, 5, 6)
    torch.testing.assert_close(scores.norm(dim=-1), torch.ones(3, 5))
    with torch.no_grad():
        for i in range(3):
            torch.testing.assert_close(scores[i], predictor(latents[i], timesteps), atol=1e-5, rtol=1e-4)
        assert (
            predictor(latents[:, 0], torch.full((3,), 0)) - predictor(latents[:, 0], torch.full((3,), 900))
        ).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "stages"), [(64, 5), (128, 6)])
def test_the_same_settings_build_for_the_latents_of_large_bases(size: int, stages: int) -> None:
    predictor = RewardPredictor(4, size, 512).eval()
    assert len(predictor.trunk.blocks) == stages
    assert 2e6 < sum(p.numel() for p in predictor.parameters()) < 2e7
    with torch.no_grad():
        assert predictor(torch.randn(1, 4, size, size), torch.tensor([500])).shape == (1, 512)


def tiny_arguments(pipeline: Path, prompts: Path, output_dir: Path) -> list[str]:
    return [
        *(
            "--pretrained_model_name_or_path",
            str(pipeline),
            "--prompts",
            str(prompts),
            "--output_dir",
            str(output_dir),
        ),
        *("--num_images", "8", "--num_inference_steps", "2", "--sample_batch_size", "4"),
        *("--max_train_steps", "3", "--train_batch_size", "4", "--width", "8"),
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na tree\n# no more\n")
    return path


def test_from_prompts_to_a_checkpoint(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "reward")
    main(parse_config(arguments))
    predictor = RewardPredictor.from_pretrained(tmp_path / "reward")
    config = predictor.config
    assert config["prompts"] == ["a cat", "a tree"]
    assert (config["in_channels"], config["sample_size"], config["embed_dim"], config["width"]) == (
        4,
        8,
        64,
        8,
    )
    assert config["clip_model"] is None  # a local directory means nothing on another machine
    origin = config["origin"]
    assert origin["base"] == {
        "name": tiny_pipeline_dir.name,
        "revision": None,
        "pipeline_class": "StableDiffusionPipeline",
        "latent_shape": [4, 8, 8],
    }
    assert origin["data"] == {
        "kind": "base rollouts",
        "num_inference_steps": 2,
        "guidance_scale": 7.5,
        "seed": 0,
        "count": 8,
    }
    assert origin["training"]["steps"] == 3 and "torch" in origin["versions"]
    text = (tmp_path / "reward" / "config.json").read_text()
    assert (
        str(canvas.CLIP) not in text
        and str(tmp_path) not in text
        and str(tiny_pipeline_dir.parent) not in text
    )
    assert capsys.readouterr().out.count("t=") == 5  # the cosine to the teacher at every noise level

    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        main(parse_config(arguments))
    before = (tmp_path / "reward" / "model.safetensors").read_bytes()
    main(parse_config([*arguments, "--overwrite_output_dir"]))
    assert (tmp_path / "reward" / "model.safetensors").read_bytes() == before


def test_too_little_memory_is_a_sentence_and_what_is_drawn_is_kept(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "reward"))
    # More than a flag may be: what fails at once takes no memory from others.
    distillation = replace(config.distillation, train_batch_size=10**15)
    with pytest.raises(SystemExit) as caught:
        main(replace(config, distillation=distillation))
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1 and "--sample_batch_size 2, --train_batch_size 500000000000000" in error
    assert len(list((tmp_path / "reward").rglob("*.safetensors"))) == 2


def test_it_learns_from_rollouts_unless_told_not_to(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    made = {}
    for name, flags in (("default", []), ("without", ["--no-learn_from_rollouts"])):
        main(parse_config([*tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / name), *flags]))
        made[name] = RewardPredictor.from_pretrained(tmp_path / name)
    assert [made[name].config["origin"]["data"]["kind"] for name in made] == ["base rollouts", "base samples"]
    assert not torch.equal(weights(made["default"]), weights(made["without"]))


def test_the_latents_of_an_older_release_are_found_by_their_flag(
    prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "old")]
    assert latents_directory(parse_config(line)) == tmp_path / "out" / CACHE_NAME
    (tmp_path / "old" / "base-rollouts-1").mkdir(parents=True)
    (tmp_path / "old" / "base-rollouts-1" / SOURCE_NAME).write_text("{}")
    assert latents_directory(parse_config(line)) == tmp_path / "old" and "--latents_dir" in caplog.text
    assert latents_directory(parse_config([*line, "--latents_dir", "new"])) == Path("new")


def test_an_interrupted_command_goes_on_where_it_was(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    cache = ["--latents_dir", str(tmp_path / "cache"), "--checkpointing_steps", "2"]
    for name in ("whole", "resumed"):
        main(parse_config([*tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / name), *cache]))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "resumed" / name).unlink()
    main(
        parse_config(
            [
                *tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "resumed"),
                *cache,
                "--resume_from_checkpoint",
                "latest",
            ]
        )
    )
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "whole" / "checkpoint-2" / "state.json").read_text())["iteration"] == 2


def test_mixed_precision_trains_full_precision_weights(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    main(
        parse_config(
            [
                *tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "reward"),
                "--mixed_precision",
                "bf16",
                "--use_8bit_adam",
            ]
        )
    )
    predictor = RewardPredictor.from_pretrained(tmp_path / "reward")
    assert predictor(torch.randn(2, 4, 8, 8), torch.tensor([1, 900])).dtype == torch.float32
    assert weights(predictor).isfinite().all()


BAD = {
    "prompts": ([], "prompts.txt"),
    "pipeline": ([], "absent/pipeline"),
    "long prompt": ([], "supercalifragilistic"),
    "width": (["--width", "9"], "--width"),
    "wide": (["--width", "1024"], "--width"),
    "one image": (["--num_images", "1"], "--num_images"),
    "two sources": (["--train_data_dir", "a", "--dataset_name", "b"], "--dataset_name"),
    "no folder": (["--train_data_dir", "/nowhere"], "--train_data_dir"),
    "rollouts of images": (["--train_data_dir", "a", "--learn_from_rollouts"], "--learn_from_rollouts"),
    "no checkpoint": (["--resume_from_checkpoint", "latest"], "--resume_from_checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(
    case: str,
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        {"prompts": "# none\n", "long prompt": "supercalifragilistic " * 60}.get(case, "a cat\n")
    )
    pipeline = tmp_path / "absent" / "pipeline" if case == "pipeline" else tiny_pipeline_dir
    arguments, names = BAD[case]
    arguments = [*tiny_arguments(pipeline, prompts, tmp_path / "reward"), *arguments]
    monkeypatch.setattr(sys, "argv", ["reward.train", *arguments])
    monkeypatch.delitem(sys.modules, "reward.train")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("reward.train", run_name="__main__", alter_sys=True)
    assert caught.value.code == 2
    # argparse puts the name of the command before it.
    error = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(error) == 1 and names in error[0]
    assert not (tmp_path / "reward" / "config.json").exists() and not list(tmp_path.rglob("*.safetensors"))


def test_without_a_prompt_file_a_base_is_asked_for_what_it_is_known_to_draw(tiny_pipeline_dir: Path) -> None:
    assert (
        known_prompts(parse_config(["--output_dir", "x"]))
        == RewardPredictor.from_pretrained(canvas.REWARD).config["prompts"]
    )
    assert (
        known_prompts(
            parse_config(["--output_dir", "x", "--pretrained_model_name_or_path", str(tiny_pipeline_dir)])
        )
        == general_prompts()
    )


def test_a_concept_is_drawn_for_beside_the_prompts(
    tiny_pipeline_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    main(
        parse_config(
            [*tiny_arguments(tiny_pipeline_dir, prompts, tmp_path / "reward"), "--concept", "Mickey Mouse"]
        )
    )
    recorded = RewardPredictor.from_pretrained(tmp_path / "reward").config["prompts"]
    assert recorded == [*read_prompts(prompts), *asking_for("identity", "Mickey Mouse")]
