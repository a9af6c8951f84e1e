from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import canvas
from benchmarks.worlds.canvas.draw import OBJECTS, draw
from common import flags
from common.network import CheckpointError
from environment.build import EnvironmentConfig, build_environment
from environment.environment import Environment, ImageScores
from pipelines.base import BaseConfig
from reward.arguments import ConceptConfig, RewardConfig
from reward.predictor import RewardPredictor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """All that an environment is made of."""

    base: BaseConfig
    concept: ConceptConfig
    reward: RewardConfig
    environment: EnvironmentConfig


def build(*given: str) -> Environment:
    """The environment of a command line: few steps, small batches."""
    line = [*given, "--num_inference_steps", "3", "--train_batch_size", "4"]
    config = flags.parse(Settings, line, None)
    return build_environment(config.base, config.concept, config.reward, config.environment, device=CPU)


@pytest.fixture(scope="module")
def base(tiny_pipeline_dir: Path) -> list[str]:
    return [
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--clip_model",
        f"local-dir:{canvas.CLIP}",
    ]


@pytest.fixture(scope="module")
def env(base: list[str], tiny_reward_dir: Path) -> Environment:
    given = ["--reward_model_name_or_path", str(tiny_reward_dir), "--num_vocabulary_prompts", "0"]
    return build("--concept", "Van Gogh style", *base, *given)


def test_the_concept_alone_divides_the_rewards_prompts(env: Environment, tiny_prompts: list[str]) -> None:
    assert env.spec.forget_prompts == [p for p in tiny_prompts if "Van Gogh" in p]
    assert env.table.prompts == env.spec.forget_prompts + env.spec.retain_prompts and sorted(
        env.table.prompts
    ) == sorted(tiny_prompts)
    assert env.forget_ids.tolist() == [0, 1, 2] and env.retain_ids.tolist() == [3, 4, 5, 6, 7, 8]
    assert env.table.conditioning.states.shape == (9, 32, 16) and env.table.negative.states.shape == (
        1,
        32,
        16,
    )
    assert env.kernel.num_steps == 3
    assert not any(p.requires_grad for p in env.predictor.parameters())


def test_prompts_are_drawn_evenly(env: Environment) -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3, 7, 12):
        counts = env.draw(env.retain_ids, count, generator).bincount(minlength=9)
        assert counts.sum() == count and counts[:3].sum() == 0
        assert counts[3:].max() - counts[3:].min() <= 1
    first = {tuple(env.draw(env.retain_ids, 2, generator).tolist()) for _ in range(20)}
    assert len(first) > 3  # the remainder is drawn at random


def test_a_collection_holds_its_prompts_in_batches(env: Environment) -> None:
    sizes: list[int] = []
    handle = env.pipe.unet.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]) // 2)
    )
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    trajectory = env.collect(ids, torch.Generator().manual_seed(0))
    handle.remove()
    assert torch.equal(trajectory.prompt_ids, ids)
    assert sizes == [4, 4, 4, 2, 2, 2]


def test_the_finished_image_is_scored_by_the_teacher_and_the_rest_by_the_predictor(env: Environment) -> None:
    trajectory = env.collect(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    score = env.score_forget(trajectory)
    rows = trajectory.prompt_ids
    clean = env.teacher.encode_images(env.backbone.decode(trajectory.latents[:, -1]))
    torch.testing.assert_close(score.potentials[:, -1], env.reward.margin(clean[:, None], rows).squeeze(1))
    assert torch.equal(score.terminal, score.potentials[:, -1])
    for step in range(3):
        embeddings = env.predictor(trajectory.latents[:, step], trajectory.timesteps[step].expand(3))
        torch.testing.assert_close(
            score.potentials[:, step],
            env.reward.margin(embeddings[:, None], rows).squeeze(1),
            atol=1e-5,
            rtol=1e-4,
        )
    nearest = (clean @ env.prompt_text.T).argmax(-1)
    for i, prompt in enumerate(env.spec.forget_prompts):
        if env.table.prompts[nearest[i]] == prompt:
            assert not score.forgotten[i]
        if env.table.prompts[nearest[i]] in env.spec.anchors[i]:
            assert score.forgotten[i]


def test_images_of_one_colour_have_no_contrast(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory = env.collect(torch.tensor([0, 1]), torch.Generator().manual_seed(0))
    assert (env.score_forget(trajectory).contrast > 0.05).all()
    orange = torch.nn.Conv2d(8, 3, 3, padding=1)
    torch.nn.init.zeros_(orange.weight)
    orange.bias.data = torch.tensor([0.9, -0.9, 0.1])
    monkeypatch.setitem(env.pipe.vae.decoder._modules, "conv_out", orange)
    assert (env.score_forget(trajectory).contrast < 1e-4).all()


def test_retained_images_are_scored_against_their_own_prompt(env: Environment) -> None:
    trajectory = env.collect(env.retain_ids, torch.Generator().manual_seed(0))
    score = env.score_retain(trajectory)
    images = env.teacher.encode_images(env.backbone.decode(trajectory.latents[:, -1]))
    cosines = images @ env.teacher.encode_text(env.table.prompts).T
    torch.testing.assert_close(score.reward, cosines[torch.arange(6), env.retain_ids])
    assert score.recognised.tolist() == (cosines.argmax(dim=1) == env.retain_ids).tolist()


def test_calibration_measures_every_prompt_on_the_bases_own_images(
    base: list[str], tiny_reward_dir: Path
) -> None:
    env = build("--concept", "Van Gogh style", *base, "--reward_model_name_or_path", str(tiny_reward_dir))
    generator = torch.Generator().manual_seed(0)
    forget, retain = env.collect(env.forget_ids, generator), env.collect(env.retain_ids, generator)
    env.calibrate(forget, retain)
    images = env.teacher.encode_images(env.backbone.decode(retain.latents[:, -1]))
    for row, anchors in enumerate(env.spec.anchors):
        drawn = [i for i, prompt in enumerate(env.spec.retain_prompts) if prompt in anchors]
        torch.testing.assert_close(env.reward.natural[row], (images[drawn] @ env.reward.target[row]).mean())
    assert env.base_cosine is not None and env.base_cosine.shape == (9,)
    torch.testing.assert_close(env.base_cosine[3:], (images * env.prompt_text[3:]).sum(-1))
    torch.testing.assert_close(env.score_retain(retain).drop, torch.zeros(6), atol=1e-5, rtol=0)
    mixed = retain[torch.arange(6)]
    mixed.latents = mixed.latents.roll(1, dims=0)  # every prompt's image belongs to another
    assert env.score_retain(mixed).drop.abs().max() > 0


def test_images_that_calibrated_the_reward_are_not_decoded_again(
    base: list[str], tiny_reward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = build("--concept", "Van Gogh style", *base, "--reward_model_name_or_path", str(tiny_reward_dir))
    generator = torch.Generator().manual_seed(0)
    forget, retain = env.collect(env.forget_ids, generator), env.collect(env.retain_ids, generator)
    forget_images, retain_images = env.calibrate(forget, retain)
    anew = env.score_forget(forget), env.score_retain(retain)
    monkeypatch.setattr(env.pipe.vae, "decode", None)
    again = env.score_forget(forget, forget_images), env.score_retain(retain, retain_images)
    for one, other in zip(anew, again, strict=True):
        assert all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def save_images(directory: Path, count: int) -> Path:
    """Drawings of different things in one style."""
    directory.mkdir()
    for i in range(count):
        Image.fromarray(draw("Van Gogh", OBJECTS[i], np.random.default_rng(i))).save(directory / f"{i}.png")
    return directory


def test_images_of_a_concept_name_it_by_the_prompts_they_are_near_to(
    base: list[str], tiny_reward_dir: Path, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "images", 6)
    env = build("--concept_images", str(folder), *base, "--reward_model_name_or_path", str(tiny_reward_dir))
    assert env.spec.concepts == ["van gogh"] and env.spec.forget_prompts == [
        p for p in env.table.prompts if "Van Gogh" in p
    ]
    assert env.reward.exemplars is not None and env.reward.exemplars.text_share == 0


def test_images_join_a_concept_that_is_named(base: list[str], tiny_reward_dir: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", 2)
    given = [
        "--concept",
        "Neon style",
        "--concept_images",
        str(folder),
        "--reward_model_name_or_path",
        str(tiny_reward_dir),
    ]
    env = build(*given, *base)
    assert (
        env.spec.concepts == ["Neon style"]
        and env.reward.exemplars is not None
        and env.reward.exemplars.text_share == 0.5
    )


def test_a_spec_file_says_it_all(base: list[str], tiny_reward_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("concepts: [cat]\nforget: [my cat]\nretain: [a dog]\nanchors: [an animal]\n")
    env = build("--reward_spec", str(path), *base, "--reward_model_name_or_path", str(tiny_reward_dir))
    assert env.table.prompts == ["my cat", "a dog", "an animal"] and env.spec.concepts == ["cat"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([], "--concept "),
        (["--reward_spec", "spec.yaml", "--concept", "cat"], "--reward_spec"),
        (["--reward_spec", "spec.yaml", "--concept_kind", "object"], "--reward_spec"),
        (["--reward_spec", "spec.yaml", "--anchor_prompts", "anchors.txt"], "--reward_spec"),
        (["--reward_spec", "absent.yaml"], "absent.yaml"),
        (["--concept", "cat", "--target_label", "cat"], "--target_label"),
        (["--concept_images", "absent"], "absent"),
        (["--concept_images", "."], "png"),
    ],
)
def test_what_to_erase_must_be_said_once(
    given: list[str], names: str, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=names):
        build(*given, *base)


def test_an_image_that_cannot_be_read_is_named(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        build("--concept_images", str(tmp_path), *base)


def test_the_concept_is_recognised_whatever_the_prompt(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an image comes near to the base's own of some forget prompt; on the way from its anchor."""
    trajectory = env.collect(env.forget_ids, torch.Generator().manual_seed(0))
    reward, target = env.reward, env.reward.target[0]
    away = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    away = torch.nn.functional.normalize(away - (away @ target) * target, dim=0)

    def image(score: float) -> torch.Tensor:
        return score * target + math.sqrt(1 - score**2) * away

    calibrated = replace(reward, natural=torch.full((3,), 0.2), contrast=0.4)
    calibrated = replace(calibrated, target=target.expand(3, -1))
    shown = torch.stack([image(0.2 + share * 0.4) for share in (1.0, 0.7, 0.6)])
    monkeypatch.setattr(env, "reward", calibrated)
    monkeypatch.setattr(env, "finish", lambda _: ImageScores(shown, shown[:, 0]))
    assert env.shows_concept(trajectory).tolist() == [True, True, False]


def test_prompt_files_replace_what_the_concept_would_give(
    base: list[str], tiny_reward_dir: Path, tmp_path: Path
) -> None:
    given: list[str] = []
    for name, text in (
        ("forget", "my kitten\nyour cat\n"),
        ("retain", "a dog\n# none\na cow\n"),
        ("anchor", "an animal\n"),
    ):
        (tmp_path / name).write_text(text)
        given += [f"--{name}_prompts", str(tmp_path / name)]
    env = build("--concept", "cat", *base, "--reward_model_name_or_path", str(tiny_reward_dir), *given)
    assert env.table.prompts[:5] == ["my kitten", "your cat", "a dog", "a cow", "an animal"]
    assert env.vocabulary_ids.tolist() == list(range(5, len(env.table.prompts)))
    assert {text.split()[0] for text in env.table.prompts[5:]} == {"your"}  # "my kitten" does not say "cat"
    assert (
        env.forget_ids.tolist() == [0, 1]
        and env.retain_ids.tolist() == [2, 3]
        and env.anchor_rows.tolist() == [[4], [4]]
    )
    assert env.spec.anchors == [["an animal"]] * 2
    torch.testing.assert_close(env.reward.target, env.teacher.encode_text(["my kitten", "your cat"]))


def test_a_reward_can_be_trained_first(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import environment.build as module

    train = module.train_predictor
    monkeypatch.setattr(
        module,
        "train_predictor",
        lambda *a, **k: train(*a, **k, num_images=8, steps=2, train_batch_size=4, width=8),
    )
    (tmp_path / "retain").write_text("a tree\na car\n")
    env = build("--concept", "cat", *base, "--train_reward", "--retain_prompts", str(tmp_path / "retain"))
    assert env.spec.retain_prompts == ["a tree", "a car"] and any("cat" in p for p in env.spec.forget_prompts)
    assert (
        env.score_forget(env.collect(env.forget_ids[:2], torch.Generator().manual_seed(0)))
        .potentials.isfinite()
        .all()
    )
    few = module.general_prompts()[::20]  # CLIP takes twenty seconds for all
    monkeypatch.setattr(module, "general_prompts", lambda: few)
    general = build("--concept", "cat", *base, "--train_reward", "--num_retain_prompts", "16")
    assert len(general.spec.retain_prompts) == 16 and any("cat" in p for p in general.spec.forget_prompts)
    assert general.predictor.config["prompts"] == [*general.spec.forget_prompts, *general.spec.retain_prompts]


def test_a_base_without_a_reward_from_its_classifier_says_how_to_train_one(base: list[str]) -> None:
    given = [
        "--target_label",
        "cat",
        "--reward_type",
        "classifier",
        "--classifier_name_or_path",
        "some/classifier",
    ]
    with pytest.raises(ValueError, match=r"reward\.train .*--classifier_name_or_path some/classifier"):
        build(*given, *base[:2])


def test_a_base_without_a_reward_says_how_to_train_one(base: list[str]) -> None:
    with pytest.raises(ValueError, match=r"python -m reward\.train") as caught:
        build("--concept", "cat", *base)
    assert base[1] in str(caught.value) and "--train_reward" in str(caught.value)
    with pytest.raises(ValueError, match="--clip_model"):
        build("--concept", "cat", *base[:2])


def test_a_reward_for_other_latents_is_refused(base: list[str], wide_reward_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"4x16x16.*4x8x8"):
        build("--concept", "cat", *base, "--reward_model_name_or_path", str(wide_reward_dir))


def test_a_reward_of_another_clip_is_refused(
    base: list[str], tiny_prompts: list[str], tmp_path: Path
) -> None:
    RewardPredictor(4, 8, 32, width=8, condition_dim=16, prompts=tiny_prompts).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"\b32\b.*\b64\b"):
        build("--concept", "cat", *base, "--reward_model_name_or_path", str(tmp_path))
