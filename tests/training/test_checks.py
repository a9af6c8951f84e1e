"""What a user can get wrong is refused before anything is loaded, by the flag to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import LoggerType

from common.checkpoints import Checkpoint
from common.files import LOCK_NAME
from training import checks
from training.checks import check, check_same_run, fixed_settings
from training.config import RunConfig, parse_config


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        *(f"ACCELERATE_USE_{plugin}" for plugin in ("DEEPSPEED", "FSDP", "MEGATRON_LM")),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a process group."""
    in_processes(1, monkeypatch)


@pytest.fixture(autouse=True)
def with_tensorboard_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    """The settings of a line, with an output directory that is not there."""
    return lambda *line: parse_config(["--concept", "cat", "--output_dir", str(tmp_path / "out"), *line])


def in_processes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "processes", lambda: SimpleNamespace(num_processes=count))


def test_a_run_of_defaults_is_let_pass(config: Callable[..., RunConfig]) -> None:
    check(config())


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--masked_steps 16", ["--masked_steps"]),
        ("--masked_steps 3 --num_inference_steps 3", ["--masked_steps"]),
        ("--terminal_weight 0.5", ["--terminal_weight", "--advantage"]),
        ("--critic_model_name_or_path x", ["--critic_model_name_or_path", "--advantage", "--gamma"]),
        ("--critic_model_name_or_path x --advantage ddpo", ["--critic_model_name_or_path", "--advantage"]),
        ("--advantage gae --warmup_rollouts 1", ["--warmup_rollouts"]),
        ("--gamma 0.5 --warmup_rollouts 1", ["--warmup_rollouts"]),
        ("--hub_token hf_x --report_to wandb", ["--report_to", "--hub_token"]),
        ("--hub_token hf_x --report_to all", ["--report_to", "--hub_token"]),
        ("--report_to comet_ml", ["package comet_ml", "--report_to none", "tensorboard"]),
        ("--report_to tensorbord", ["tensorbord", "--report_to none", "tensorboard"]),
        ("--base_model_id some/base", ["--base_model_id", "--pretrained_model_name_or_path"]),
        ("--base_model_id base --pretrained_model_name_or_path dir", ["--base_model_id"]),
        ("--base_model_id a/b/c --pretrained_model_name_or_path dir", ["--base_model_id"]),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    line: str, named: list[str], config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError) as caught:
        check(config(*line.split()))
    said = str(caught.value)
    assert all(flag in said for flag in named) and "hf_x" not in said and "\n" not in said


@pytest.mark.parametrize(
    "line",
    [
        "--masked_steps 15",
        "--masked_steps 2 --num_inference_steps 3",
        "--terminal_weight 0",
        "--terminal_weight 0.5 --advantage step",
        "--critic_model_name_or_path x --gamma 0.5",
        "--critic_model_name_or_path x --advantage td",
        "--warmup_rollouts 1",
        "--advantage gae --warmup_rollouts 2",
        "--hub_token hf_x --report_to tensorboard",
        "--report_to none",
        "--report_to all",
        "--base_model_id some/base --pretrained_model_name_or_path dir",
    ],
)
def test_settings_that_do_are_let_pass(line: str, config: Callable[..., RunConfig]) -> None:
    check(config(*line.split()))


# --- the output directory


def test_a_directory_that_holds_something_is_refused(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check(config())
    (out / LOCK_NAME).touch()  # of a run that has ended
    check(config())
    (out / "notes.txt").touch()
    with pytest.raises(ValueError) as caught:
        check(config())
    for flag in ("--output_dir", "--overwrite_output_dir", "--resume_from_checkpoint"):
        assert flag in str(caught.value)
    check(config("--overwrite_output_dir"))
    check(config("--resume_from_checkpoint", "latest"))


@pytest.mark.parametrize("line", [[], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]])
def test_a_file_is_no_directory(line: list[str], config: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="--output_dir"):
        check(config(*line))
    assert (tmp_path / "out").read_text() == "a file"


def test_nothing_is_written(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    check(config())
    assert list(tmp_path.iterdir()) == []


# --- launchers and processes


@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_a_model_that_is_shared_out_is_refused(
    variable: str, named: str, config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=named) as caught:
        check(config())
    assert "--load_in_4bit" in str(caught.value)
    monkeypatch.setenv(variable, "false")
    check(config())


def test_the_launchers_gradient_accumulation_is_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="--gradient_accumulation_steps"):
        check(config())
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check(config("--gradient_accumulation_steps", "4"))  # the script's own


@pytest.mark.parametrize(
    "name", ["images_per_iteration", "retain_batch_size", "retain_rollouts", "warmup_rollouts"]
)
def test_each_process_has_something_to_do(
    name: str, config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_processes(3, monkeypatch)
    check(config())
    check(config(f"--{name}", "3"))
    with pytest.raises(ValueError, match=f"--{name} 2"):
        check(config(f"--{name}", "2"))


# --- resuming


def checkpoint_of(config: RunConfig, **numbers: Any) -> Checkpoint:
    """What `RunState.save` writes, as far as it is looked at, through JSON as it comes back."""
    written = {"settings": fixed_settings(config), "inputs": {}} | numbers
    return Checkpoint({"lora": {}}, json.loads(json.dumps(written)))


def test_a_run_goes_on_with_the_settings_it_had(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    line = ["--advantage", "gae", "--evaluation_seeds", "0", "1", "--lora_target_modules", "a", "b"]
    check_same_run(config(*line), checkpoint_of(config(*line)), {})
    local = ["--output_dir", str(tmp_path / "moved"), "--resume_from_checkpoint", "latest"]
    changed = [
        "--max_train_iterations",
        "80",
        "--train_batch_size",
        "2",
        "--evaluation_seeds",
        "--offload_models",
    ]
    check_same_run(config(*line, *local, *changed, "--hub_token", "hf_x"), checkpoint_of(config(*line)), {})
    # A default that is given is the default.
    check_same_run(
        config(*line, "--lora_alpha", "8", "--mixed_precision", "no"), checkpoint_of(config(*line)), {}
    )


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("learning_rate", "0.5", "0.01"),
        ("rank", "4", "8"),
        ("lora_alpha", "2", "8"),
        ("concept", "dog", "cat"),
        ("seed", "1", "0"),
        ("advantage", "gae", "pathwise"),
        ("mixed_precision", "bf16", "no"),
        ("images_per_iteration", "8", "32"),
        ("pretrained_model_name_or_path", "another/base", "None"),
    ],
)
def test_a_run_does_not_go_on_with_others(
    name: str, value: str, was: str, config: Callable[..., RunConfig]
) -> None:
    checkpoint = checkpoint_of(config())
    with pytest.raises(ValueError) as caught:
        check_same_run(config(f"--{name}", value), checkpoint, {})
    said = str(caught.value)
    assert f"--{name} " in said and was in said and value in said and "\n" not in said


def test_all_that_differs_is_named_at_once(config: Callable[..., RunConfig]) -> None:
    checkpoint = checkpoint_of(config(), inputs={"forget_prompts": "a" * 64})
    with pytest.raises(ValueError) as caught:
        check_same_run(config("--rank", "4", "--seed", "1"), checkpoint, {"forget_prompts": "b" * 64})
    assert all(flag in str(caught.value) for flag in ("--rank", "--seed", "--forget_prompts"))
    assert "--learning_rate" not in str(caught.value)


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint({"lora": {}}, {"iteration": 3}),
        Checkpoint({"network": {}}, {"settings": {}}),
        Checkpoint({"lora": {}}, {"settings": {}}),
    ],
    ids=["no settings", "no adapter", "an earlier version"],
)
def test_a_checkpoint_of_something_else_is_refused(
    checkpoint: Checkpoint, config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError, match="--resume_from_checkpoint"):
        check_same_run(config("--resume_from_checkpoint", "latest"), checkpoint, {})


def test_what_is_fixed_is_neither_local_nor_a_matter_of_memory(config: Callable[..., RunConfig]) -> None:
    found = fixed_settings(config("--hub_token", "hf_x"))
    assert found == json.loads(json.dumps(found))
    assert {"rank", "lora_alpha", "concept", "seed", "mixed_precision"} <= found.keys()
    assert not {"output_dir", "hub_token", "train_batch_size", "evaluation_seeds", "report_to"} & found.keys()
