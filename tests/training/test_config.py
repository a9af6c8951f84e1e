"""The flags of `train_unlearn_lora.py`: every change of a name or a default is seen here, and is a line in
CHANGELOG.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import canvas
from common.flags import settings_of, title_of, to_yaml, values_of
from common.names import BUNDLED_PIPELINE
from training.config import ELSEWHERE, RunConfig, parse_config
from training.presets import PRESETS

DEFAULTS: dict[str, Any] = {
    "concept": None,
    "concept_kind": None,
    "concept_images": None,
    "reward_spec": None,
    "forget_prompts": None,
    "retain_prompts": None,
    "anchor_prompts": None,
    "num_anchors": 1,
    "num_retain_prompts": 128,
    "num_vocabulary_prompts": 64,
    "reward_model_name_or_path": None,
    "reward_type": "clip",
    "classifier_name_or_path": None,
    "target_label": None,
    "clip_model": None,
    "clip_pretrained": None,
    "pretrained_model_name_or_path": None,
    "pretrained_vae_model_name_or_path": None,
    "config_name_or_path": None,
    "revision": None,
    "variant": None,
    "resolution": None,
    "prediction_type": None,
    "without_t5": False,
    "cache_dir": None,
    "local_files_only": False,
    "train_reward": False,
    "fidelity_weight": 2.0,
    "num_inference_steps": 16,
    "guidance_scale": 7.5,
    "eta": 1.0,
    "train_batch_size": None,
    "base_model_id": None,
    "critic_model_name_or_path": None,
    "judge_name_or_path": None,
    "output_dir": Path("unlearned-lora"),
    "overwrite_output_dir": False,
    "output_kohya_format": True,
    "dry_run": False,
    "preset": None,
    "seed": 0,
    "max_train_iterations": 40,
    "images_per_iteration": 32,
    "target_unlearning_accuracy": 0.95,
    "patience": 3,
    "plateau_iterations": 3,
    "rank": 8,
    "lora_alpha": None,
    "lora_target_modules": None,
    "train_text_encoder": True,
    "learning_rate": 0.01,
    "lr_scheduler": "shortfall",
    "cooldown_updates": 3,
    "lr_warmup_steps": 0,
    "use_8bit_adam": False,
    "adam_beta1": 0.5,
    "adam_beta2": 0.99,
    "adam_weight_decay": 0.0001,
    "adam_epsilon": 1e-08,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "mixed_precision": None,
    "enable_xformers_memory_efficient_attention": False,
    "allow_tf32": False,
    "channels_last": False,
    "torch_compile": False,
    "offload_models": False,
    "offload_trajectories": False,
    "load_in_8bit": False,
    "load_in_4bit": False,
    "bnb_quantization_config_path": None,
    "advantage": "pathwise",
    "gae_lambda": 0.9,
    "gamma": None,
    "terminal_weight": None,
    "reward_signal": "noisy",
    "critic_type": "film",
    "advantage_clip": 5.0,
    "clip_range": 0.2,
    "inner_epochs": 1,
    "replay_iterations": 0,
    "target_kl": 0.02,
    "train_timestep_fraction": 0.5,
    "masked_steps": 2,
    "kl_coef": 20.0,
    "retain_kl_target": None,
    "anchor_kl_coef": 1.0,
    "weigh_anchor_kl": True,
    "adversarial_radius": 0.5,
    "retain_rollouts": 64,
    "retain_batch_size": 16,
    "max_retain_drop": 0.2,
    "max_retain_kl": 0.3,
    "max_step_kl": 3.0,
    "max_brakes": 3,
    "critic_learning_rate": 0.001,
    "warmup_rollouts": 64,
    "critic_warmup_steps": 300,
    "critic_steps": 30,
    "critic_batch_size": 256,
    "critic_buffer_iterations": 4,
    "validation_prompt": None,
    "num_validation_images": 8,
    "validation_steps": 10,
    "validation_guidance_scale": None,
    "evaluation_seeds": None,
    "checkpointing_steps": 10,
    "checkpoints_total_limit": 2,
    "resume_from_checkpoint": None,
    "report_to": "tensorboard",
    "logging_dir": "logs",
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_private_repo": False,
    "hub_token": None,
}
"""All flags, with what stands for a flag that is left out."""
RESOLVED = {"lora_alpha": 8, "mixed_precision": "no"}
"""What the None of these comes to; that of hub_model_id is the last part of --output_dir."""
MAY_CHANGE = {
    "max_train_iterations",
    "target_unlearning_accuracy",
    "patience",
    "plateau_iterations",
    "cooldown_updates",
    "max_brakes",
    "train_batch_size",
    "enable_xformers_memory_efficient_attention",
    "gradient_checkpointing",
    "channels_last",
    "torch_compile",
    "offload_models",
    "offload_trajectories",
    "base_model_id",
    "judge_name_or_path",
    "output_kohya_format",
    "validation_prompt",
    "num_validation_images",
    "validation_steps",
    "validation_guidance_scale",
    "evaluation_seeds",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "report_to",
}
"""What may be another where a run is resumed."""
LOCAL = {
    "dry_run",
    "output_dir",
    "logging_dir",
    "cache_dir",
    "local_files_only",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "forget_prompts",
    "retain_prompts",
    "anchor_prompts",
    "reward_spec",
    "concept_images",
    "clip_pretrained",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
}
"""What is never published: it is of this machine alone."""


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def test_the_flags_and_their_defaults_are_those_of_the_list() -> None:
    found = values_of(parse_config([]))
    assert len(found) == 116 and found == DEFAULTS
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in DEFAULTS.items()
    }
    assert not any(setting.required for setting in settings_of(RunConfig))


def test_what_has_no_default_of_its_own_goes_by_something_else(tmp_path: Path) -> None:
    config = parse_config([])
    assert config.adapter.alpha == RESOLVED["lora_alpha"]
    assert config.memory.precision == RESOLVED["mixed_precision"]
    assert config.repository == "unlearned-lora" and config.base_name == BUNDLED_PIPELINE
    assert {name: config.public_settings()[name] for name in RESOLVED} == RESOLVED
    config = parse_config(["--rank", "4", "--output_dir", str(tmp_path / "out"), "--mixed_precision", "bf16"])
    assert config.adapter.alpha == 4 and config.repository == "out" and config.memory.precision == "bf16"
    config = parse_config(["--rank", "4", "--lora_alpha", "2.5", "--hub_model_id", "me/lora"])
    assert config.adapter.alpha == 2.5 and config.repository == "me/lora"
    config = parse_config(["--pretrained_model_name_or_path", str(tmp_path / "copy")])
    assert config.base_name == "copy" and not config.base.is_bundled
    assert parse_config(["--pretrained_model_name_or_path", str(canvas.PIPELINE)]).base.is_bundled
    config = parse_config(
        ["--pretrained_model_name_or_path", str(tmp_path / "copy"), "--base_model_id", "some/base"]
    )
    assert config.base_name == "some/base" and config.base.name == str(tmp_path / "copy")


def test_the_batch_size_that_goes_by_the_latents_is_set_once_they_are_known() -> None:
    config = parse_config(["--rank", "4"])
    found = config.with_batch_size(8)
    assert values_of(found) == values_of(config) | {"train_batch_size": 8}
    assert config.environment.train_batch_size is None


def test_which_settings_may_change_when_a_run_is_resumed() -> None:
    assert {s.name for s in settings_of(RunConfig) if s.flag.may_change} == MAY_CHANGE


def test_which_settings_are_published() -> None:
    assert {s.name for s in settings_of(RunConfig) if s.flag.published is None} == LOCAL
    assert parse_config([]).public_settings().keys() == DEFAULTS.keys() - LOCAL
    assert {s.name for s in settings_of(RunConfig) if s.flag.secret} == {"hub_token"}


def test_what_is_published_names_no_place_on_this_machine(tmp_path: Path) -> None:
    line: list[str] = ["--hub_token", "hf_secret", "--report_to", "tensorboard"]
    for setting in settings_of(RunConfig):
        if setting.kind is Path or setting.name.endswith("name_or_path"):
            line += [f"--{setting.name}", str(tmp_path / f"my-{setting.name}")]
    line += ["--clip_model", f"local-dir:{tmp_path / 'my-clip'}", "--clip_pretrained", str(tmp_path / "tag")]
    quantization = tmp_path / "my-bnb_quantization_config_path"
    quantization.write_text('{"load_in_4bit": true}')
    config = parse_config(line)
    assert str(tmp_path) in to_yaml(config)
    for text in (json.dumps(config.public_settings()), to_yaml(config, public=True)):
        assert str(tmp_path) not in text and "hf_secret" not in text
    found = config.public_settings()
    assert found["clip_model"] == "my-clip"
    assert found["judge_name_or_path"] == "my-judge_name_or_path"
    assert found["bnb_quantization_config_path"] == {"load_in_4bit": True}
    hub_ids = ["--pretrained_model_name_or_path", "some/base", "--clip_model", "hf-hub:some/clip"]
    found = parse_config(hub_ids).public_settings()
    assert found["pretrained_model_name_or_path"] == "some/base" and found["clip_model"] == "hf-hub:some/clip"


def test_help_has_a_group_for_each_class_and_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    titles = list(dict.fromkeys(title_of(setting.group) for setting in settings_of(RunConfig)))
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert len(titles) == 15 and places == sorted(places)
    assert set(re.findall(r"^  --(?:no-)?(\w+)", text, re.MULTILINE)) == {"config", *DEFAULTS}
    shown = " ".join(text.split())
    for name, value in DEFAULTS.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            said = shown[shown.index(f" --{name} ", shown.index(titles[0])) :]
            assert (
                f"Default: {value:g}." in said if isinstance(value, float) else f"Default: {value}." in said
            )


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("eta", ["1e-3", "2"], ["0", "-1", "nan"]),
        ("guidance_scale", ["0", "7.5"], ["-1", "inf"]),
        ("masked_steps", ["0"], ["-1", "1.5"]),
        ("num_inference_steps", ["1"], ["0"]),
        ("train_batch_size", ["1"], ["0", "-1"]),
        ("images_per_iteration", ["1"], ["0"]),
        ("rank", ["1"], ["0", "x"]),
        ("lora_alpha", ["0.5"], ["0", "-1"]),
        ("learning_rate", ["0", "1"], ["-1e-9", "x"]),
        ("adam_beta1", ["0", "0.999"], ["1", "-0.1"]),
        ("gamma", ["0", "1"], ["1.1", "-0.1"]),
        ("gae_lambda", ["0", "1"], ["1.1"]),
        ("train_timestep_fraction", ["0.01", "1"], ["0", "1.01"]),
        ("clip_range", ["0"], ["-0.1"]),
        ("max_grad_norm", ["0.1"], ["0"]),
        ("max_brakes", ["0"], ["-1"]),
        ("patience", ["1"], ["0"]),
        ("target_unlearning_accuracy", ["0", "1.1"], ["-0.1", "nan"]),
        ("seed", ["0", "4294967295"], ["-3", "4294967296", "x", "0.5"]),
        ("evaluation_seeds", ["0", "-3"], ["x"]),
        ("mixed_precision", ["no", "fp16", "bf16"], ["fp8"]),
        ("advantage", ["pathwise", "ddpo"], ["ppo"]),
        ("critic_type", ["film", "none"], ["big"]),
        ("lr_scheduler", ["shortfall", "constant", "cosine"], ["piecewise_constant", "often"]),
    ],
)
def test_values_outside_their_range_are_refused_by_their_flag(
    name: str, inside: list[str], outside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in inside:
        parse_config([f"--{name}={value}"])
    for value in outside:
        with pytest.raises(SystemExit) as caught:
            parse_config([f"--{name}={value}"])
        assert caught.value.code == 2 and f"--{name}" in capsys.readouterr().err.splitlines()[-1]


OTHERS: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: 9,
    float: lambda value: 0.75,
    str: lambda value: "other",
    Path: lambda value: Path("other/path"),
}


def test_the_file_of_a_run_repeats_it(tmp_path: Path) -> None:
    """With every setting another than its default."""
    values: dict[str, Any] = {}
    for setting in settings_of(RunConfig):
        default = DEFAULTS[setting.name]
        choices = setting.flag.choices
        value = (
            next(choice for choice in choices if choice != default)
            if choices
            else OTHERS[setting.kind](default)
        )
        values[setting.name] = [value] if setting.several else value
    values["hub_token"] = None
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump(plain))
    config = parse_config(["--config", str(first)])
    assert all(value != DEFAULTS[name] for name, value in values_of(config).items() if name != "hub_token")
    second.write_text(to_yaml(config))
    assert parse_config(["--config", str(second)]) == config
    again = parse_config(["--config", str(second), "--rank", "3", "--hub_token", "hf_secret"])
    assert again.adapter.rank == 3 and again.hub.hub_token == "hf_secret"
    assert values_of(again) == values_of(config) | {"rank": 3, "hub_token": "hf_secret"}


def test_a_preset_gives_way_to_what_is_said(tmp_path: Path) -> None:
    """Defaults, preset, file, command line: what comes later wins; and its own file repeats the run."""
    paper = parse_config(["--preset", "paper"])
    changed = {name: value for name, value in values_of(paper).items() if value != DEFAULTS[name]}
    assert changed == {"preset": "paper", **PRESETS["paper"]}
    assert paper.credit.estimator.uses_critic and paper.update.anchor_kl_coef == 0
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 0.003\nreplay_iterations: 0")
    given = ["--preset", "paper", "--config", str(file), "--replay_iterations", "4"]
    mixed = parse_config(given)
    assert mixed.optimizer.learning_rate == 0.003 and mixed.update.replay_iterations == 4
    assert mixed.credit.advantage == "td"
    file.write_text("preset: paper")
    assert parse_config(["--config", str(file)]) == paper
    file.write_text(to_yaml(mixed))
    assert parse_config(["--config", str(file)]) == mixed


def test_a_preset_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--preset", "papers"])
    assert caught.value.code == 2 and "--preset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("learning_rates: 1", ["learning_rates", "learning_rate"]),
        ("kl_coeff: 1", ["kl_coeff", "kl_coef"]),
        ("images_per_iterations: 1", ["images_per_iteration"]),
        ("rank: 0", ["rank"]),
        ("concept: cat", ["concept"]),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    content: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as caught:
        parse_config(["--config", str(path)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and all(re.search(rf"\b{name}\b", said) for name in names)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_flags_of_diffusers_scripts_are_answered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name not in DEFAULTS
    with pytest.raises(SystemExit) as ended:
        parse_config(["--concept", "cat", f"--{name}", "1"])
    assert ended.value.code == 2 and f"--{name}: {ELSEWHERE[name]}" in capsys.readouterr().err
    mentioned = re.findall(r"--(\w+)", ELSEWHERE[name])
    assert set(mentioned) <= DEFAULTS.keys()


def test_a_misspelt_flag_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for given, answer in {
        "--lerning_rate=1": "did you mean --learning_rate?",
        "--ouput_dir": "did you mean --output_dir?",
        "--hf_sEcReT": "unrecognized arguments: --hf_...\n",
    }.items():
        with pytest.raises(SystemExit):
            parse_config(["--concept", "cat", given])
        said = capsys.readouterr().err
        assert said.endswith(f"{answer}\n" if answer.endswith("?") else answer)
