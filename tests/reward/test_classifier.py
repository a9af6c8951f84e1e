from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

import canvas
from benchmarks.classifier import main, parse_config
from common import flags
from common.network import CheckpointError
from environment.build import EnvironmentConfig, build_environment
from environment.environment import Environment
from pipelines.base import BaseConfig
from reward.arguments import ConceptConfig, RewardConfig
from reward.classifier import LOGIT_SCALE, ClassifierTeacher, find_label, preprocessing
from reward.predictor import RewardPredictor
from reward.train import main as train_reward
from reward.train import parse_config as parse_reward_config


def make_classifier(domain: str, directory: Path, steps: int) -> None:
    line = f"--domain {domain} --num_images 64 --max_train_steps {steps} --train_batch_size 8"
    main(parse_config([*line.split(), "--output_dir", str(directory)]))


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classifier")
    make_classifier("object", directory, steps=3)
    return directory


@pytest.fixture(scope="module")
def teacher(classifier_dir: Path) -> ClassifierTeacher:
    return ClassifierTeacher.from_pretrained(str(classifier_dir), "Cat")


def test_an_images_vector_is_its_centred_logits_as_transformers_computes_them(
    teacher: ClassifierTeacher, classifier_dir: Path
) -> None:
    pictures = [Image.effect_noise((32, 32), s).convert("RGB") for s in (20.0, 90.0)]
    model = AutoModelForImageClassification.from_pretrained(classifier_dir)
    inputs = ViTImageProcessor.from_pretrained(classifier_dir)(pictures, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = LOGIT_SCALE * (logits - logits.mean(dim=1, keepdim=True))
    torch.testing.assert_close(teacher.encode_pictures(pictures), expected, atol=1e-5, rtol=1e-4)


def test_a_texts_vector_reads_its_label_or_anything_but_the_target(teacher: ClassifierTeacher) -> None:
    assert teacher.target == "cat"
    rows = teacher.encode_text(["a CAR image in Mosaic style", "a dragon"])
    cat, car = teacher.labels.index("cat"), teacher.labels.index("car")
    assert rows[0].tolist() == [float(i == car) for i in range(8)] and rows[1].tolist() == [
        -float(i == cat) for i in range(8)
    ]
    assert teacher.encode_targets(["my kitten", "a cat"]).argmax(1).tolist() == [cat, cat]


def test_the_longest_label_in_a_text_is_meant(teacher: ClassifierTeacher) -> None:
    teacher = ClassifierTeacher(teacher.model, teacher.preprocess, None, "x")
    teacher.labels = ["shark", "great white shark", "?"]
    assert (
        teacher.named_in("a great white shark in the sea") == "great white shark"
        and teacher.named_in("a whale") is None
    )


def test_a_label_it_does_not_have_is_refused_with_the_nearest_first(classifier_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"'cats'.*: cat, "):
        ClassifierTeacher.from_pretrained(str(classifier_dir), "cats")
    with pytest.raises(ValueError, match=r"\b980\b"):
        find_label("x", [f"label {i}" for i in range(1000)])


@pytest.mark.parametrize("what", ["absent", "empty", "broken"])
def test_what_is_no_classifier_is_refused_in_a_sentence(what: str, tmp_path: Path) -> None:
    directory = tmp_path / what
    if what != "absent":
        directory.mkdir()
    if what == "broken":
        (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=str(directory)) as caught:
        ClassifierTeacher.from_pretrained(str(directory), "cat")
    assert "\n" not in str(caught.value)


def test_timms_classifiers_come_through_transformers(tmp_path: Path) -> None:
    model = timm.create_model("test_vit.r160_in1k", pretrained=False, num_classes=3)
    config = TimmWrapperConfig(
        architecture="test_vit.r160_in1k",
        initialize_weights=True,
        pretrained_cfg=model.pretrained_cfg | {"num_classes": 3},
        id2label=dict(enumerate("abc")),
        label2id={n: i for i, n in enumerate("abc")},
    )
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    teacher = ClassifierTeacher.from_pretrained(str(tmp_path), "b")
    assert teacher.labels == ["a", "b", "c"]
    assert teacher.encode_images(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_images_are_resized_cropped_and_normalised_as_the_processor_says() -> None:
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.25] * 3, image_std=[0.5] * 3)
    out = preprocessing(processor)(torch.full((1, 3, 16, 16), 0.75))
    assert out.shape == (1, 3, 8, 8) and torch.allclose(out, torch.ones(1))


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
    return build_environment(
        config.base, config.concept, config.reward, config.environment, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def distilled(
    classifier_dir: Path,
    tiny_pipeline_dir: Path,
    tiny_prompts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    directory = tmp_path_factory.mktemp("distilled")
    (directory / "prompts.txt").write_text("\n".join(tiny_prompts))
    given = [
        "--classifier_name_or_path",
        str(classifier_dir),
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
    ]
    given += [
        "--prompts",
        str(directory / "prompts.txt"),
        "--output_dir",
        str(directory),
        "--num_images",
        "12",
        "--max_train_steps",
        "4",
    ]
    train_reward(
        parse_reward_config([*given, "--width", "8", "--train_batch_size", "4", "--num_inference_steps", "3"])
    )
    return directory


def test_an_environment_is_rewarded_by_the_classifier(
    distilled: Path, classifier_dir: Path, tiny_pipeline_dir: Path
) -> None:
    predictor = RewardPredictor.from_pretrained(distilled)
    assert (
        predictor.config["unit_length"] is False
        and predictor.config["embed_dim"] == 8
        and "/" not in str(predictor.config["clip_model"])
    )
    base = [
        "--pretrained_model_name_or_path",
        str(tiny_pipeline_dir),
        "--reward_model_name_or_path",
        str(distilled),
    ]
    base += ["--reward_type", "classifier", "--classifier_name_or_path", str(classifier_dir)]
    env = build("--target_label", "cat", *base)
    assert env.spec.concepts == ["cat"] and len(env.spec.forget_prompts) == 3
    trajectory = env.collect(env.forget_ids, torch.Generator().manual_seed(0))
    env.calibrate(trajectory, env.collect(env.retain_ids, torch.Generator().manual_seed(1)))
    score = env.score_forget(trajectory)
    cat = env.teacher.encode_images(
        env.pipe.vae.decode(trajectory.latents[:, -1] / env.pipe.vae.config.scaling_factor).sample
    )
    column = env.teacher.labels.index("cat")
    torch.testing.assert_close(
        env.reward.target_score(cat[:, None], trajectory.prompt_ids).squeeze(1), cat[:, column]
    )
    assert score.potentials.isfinite().all()


def test_a_predictor_of_another_teacher_is_refused(
    distilled: Path, classifier_dir: Path, tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path
) -> None:
    base = ["--concept", "cat", "--pretrained_model_name_or_path", str(tiny_pipeline_dir)]
    by_classifier = ["--reward_type", "classifier", "--classifier_name_or_path", str(classifier_dir)]
    clip = ["--clip_model", f"local-dir:{canvas.CLIP}"]
    with pytest.raises(CheckpointError, match="--reward_type classifier"):
        build(*base, *clip, "--reward_model_name_or_path", str(distilled))
    other = tmp_path / "other"
    make_classifier("style", other, steps=1)
    given = ["--reward_type", "classifier", "--classifier_name_or_path", str(other), "--target_label", "Neon"]
    with pytest.raises(CheckpointError, match=r"house, .*Van Gogh, "):
        build(*base, *given, "--reward_model_name_or_path", str(distilled))
    for given, missing in (
        (by_classifier[:2], "--classifier_name_or_path"),
        (by_classifier[2:], "--reward_type classifier"),
    ):
        with pytest.raises(ValueError, match=missing):
            build(*base, *given, "--reward_model_name_or_path", str(distilled))
