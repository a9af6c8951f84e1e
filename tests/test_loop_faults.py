"""Faults within the loop: numbers that are none, a reward that says nothing, a tracker that is down, a Hub
that is away.

A run recovers, or it ends with one sentence and an exit code; it never writes an adapter of numbers that are
none.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file

import train_unlearn_lora as script
from common.checkpoints import list_checkpoints, load_checkpoint
from reward.predictor import RewardPredictor
from training import tracking
from training.config import RunConfig
from training.run_state import OUT_OF_ITERATIONS
from training.setup import Run, prepare

ADAPTER = "pytorch_lora_weights.safetensors"
Arguments = Callable[..., RunConfig]
Spoil = Callable[[Run], object]
"""What is done to what a run is made of before it begins."""


@pytest.fixture
def run(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script from arguments to exit, with everything in it as it is but for what a test spoils."""

    def make(spoil: Spoil, **changes: Any) -> None:
        def spoilt(config: RunConfig) -> Run:
            prepared = prepare(config)
            spoil(prepared)
            return prepared

        monkeypatch.setattr(script, "prepare", spoilt)
        script.main(arguments(**changes))

    return make


def calls_between(module: torch.nn.Module, first: int, last: float, value: float) -> None:
    """Make the module's output `value` from its `first` call to its `last`."""
    count = itertools.count()

    def hook(_: torch.nn.Module, given: Any, output: Any) -> Any:
        if not first <= next(count) <= last:
            return None
        if isinstance(output, tuple):
            return (output[0] * 0 + value, *output[1:])
        return output * 0 + value

    module.register_forward_hook(hook)


def sentence(caught: pytest.ExceptionInfo[SystemExit], capsys: pytest.CaptureFixture[str]) -> str:
    """The only error that a run has ended with."""
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    error = said[said.index("error: ") :].rstrip("\n")
    assert "\n" not in error
    return error


def finite_adapter(directory: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(directory / ADAPTER)
    assert tensors and all(tensor.isfinite().all() for tensor in tensors.values())
    return tensors


def results_of(directory: Path) -> dict[str, Any]:
    """results.json, which must be JSON: NaN is none."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads((directory / "results.json").read_text(), parse_constant=refuse)


ABOUT_IMAGES, ABOUT_PREDICTOR, ABOUT_TEACHER = (
    "--pretrained_vae_model_name_or_path",
    "reward.train",
    "--clip_model",
)
"""What to take another of, by which a sentence is known."""


# --- numbers that are none
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_base_that_draws_no_numbers_is_not_learnt_from(
    value: float, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda run: calls_between(run.denoiser, 0, math.inf, value))
    assert ABOUT_IMAGES in sentence(caught, capsys)
    assert not (tmp_path / "out" / ADAPTER).exists() and not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_unet_that_fails_for_a_while_is_recovered_from(
    value: float, run: Callable[..., None], tmp_path: Path
) -> None:
    """The base takes 16 calls, an update 14 and its rollouts 12: these are of the second update and the
    rollouts after it."""
    run(lambda run: calls_between(run.denoiser, 44, 58, value), max_train_iterations=4)
    training = results_of(tmp_path / "out")["training"]
    assert training["iterations"] == 4 and training["stopped_by"] == OUT_OF_ITERATIONS
    assert training["brakes"] == 1
    assert any(tensor.any() for name, tensor in finite_adapter(tmp_path / "out").items() if ".up." in name)


def test_a_unet_that_fails_for_good_ends_the_run_and_leaves_the_last_good_state(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(
            lambda run: calls_between(run.denoiser, 90, math.inf, math.nan),
            max_train_iterations=50,
            checkpointing_steps=1,
        )
    error = sentence(caught, capsys)
    assert ABOUT_IMAGES in error and "--resume_from_checkpoint latest" in error
    assert not (tmp_path / "out" / ADAPTER).exists() and list_checkpoints(tmp_path / "out")
    good = load_checkpoint(tmp_path / "out", "latest").groups["good"]
    assert all(tensor.isfinite().all() for tensor in good.values()) and any(
        tensor.any() for name, tensor in good.items() if "lora_B" in name
    )


def test_without_brakes_to_spare_a_broken_unet_is_still_no_success(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(
            lambda run: calls_between(run.denoiser, 90, math.inf, math.nan),
            max_train_iterations=50,
            max_brakes=0,
        )
    assert ABOUT_IMAGES in sentence(caught, capsys) and not (tmp_path / "out" / ADAPTER).exists()


def test_an_adapter_that_has_become_no_numbers_is_taken_back(
    run: Callable[..., None], tmp_path: Path
) -> None:
    def spoil(run: Run) -> None:
        parameter, count = run.optimizer.param_groups[0]["params"][0], itertools.count()
        run.optimizer.optimizer.register_step_post_hook(
            lambda *_: parameter.data.fill_(math.nan) if next(count) == 3 else None
        )

    run(spoil, max_train_iterations=4)
    assert results_of(tmp_path / "out")["training"]["brakes"] == 1
    finite_adapter(tmp_path / "out")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_once_is_left_out(
    value: float, run: Callable[..., None], tmp_path: Path
) -> None:
    def spoil(run: Run) -> None:
        count = itertools.count()
        parameter = run.optimizer.param_groups[0]["params"][0]
        parameter.register_hook(
            lambda gradient: torch.full_like(gradient, value) if next(count) == 1 else gradient
        )

    run(spoil)
    assert results_of(tmp_path / "out")["training"]["brakes"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "diagnostics.jsonl").read_text().splitlines()]
    assert lines[0]["skipped_updates"] == 1 and lines[1]["skipped_updates"] == 0
    assert any(tensor.any() for name, tensor in finite_adapter(tmp_path / "out").items() if ".up." in name)


def test_gradients_that_are_never_numbers_are_no_success(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(run: Run) -> None:
        run.optimizer.param_groups[0]["params"][0].register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(SystemExit) as caught:
        run(spoil, max_train_iterations=50)
    error = sentence(caught, capsys)
    assert "--learning_rate" in error and "--mixed_precision" in error  # both may be the cause
    assert not (tmp_path / "out" / ADAPTER).exists()


def test_a_learning_rate_beyond_all_numbers_is_no_success(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda _: None, learning_rate=1e9, max_brakes=0, max_train_iterations=9)
    assert "--learning_rate" in sentence(caught, capsys) and not (tmp_path / "out" / ADAPTER).exists()


@pytest.mark.parametrize("advantage", ["pathwise", "step"])
def test_a_reward_predictor_of_no_numbers_is_refused(
    advantage: str, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(run: Run) -> None:
        next(run.env.predictor.head.parameters()).data.fill_(math.nan)

    with pytest.raises(SystemExit) as caught:
        run(spoil, advantage=advantage)
    assert ABOUT_PREDICTOR in sentence(caught, capsys) and not (tmp_path / "out" / ADAPTER).exists()


def test_a_reward_that_fails_for_a_while_is_recovered_from(run: Callable[..., None], tmp_path: Path) -> None:
    """The critic must not have learnt from it either."""

    def spoil(run: Run) -> None:
        score_forget, count = run.env.score_forget, itertools.count()

        def score(trajectory: Any, finished: Any = None) -> Any:
            found = score_forget(trajectory, finished)
            if next(count) == 2:
                found.potentials.fill_(math.nan)
            return found

        run.env.score_forget = score

    run(spoil, max_train_iterations=4, gamma=0.5)
    assert results_of(tmp_path / "out")["training"]["brakes"] == 1
    finite_adapter(tmp_path / "out")
    critic = load_file(tmp_path / "out" / "critic" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in critic.values() if tensor.is_floating_point())


def test_a_teacher_of_no_numbers_is_refused(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda run: calls_between(run.env.teacher.model.visual, 0, math.inf, math.nan))
    assert ABOUT_TEACHER in sentence(caught, capsys)


def test_a_critic_of_no_numbers_ends_the_run(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(run: Run) -> None:
        fit, count = run.critic.fit, itertools.count()

        def poisoned(*given: Any) -> float:
            loss = fit(*given)
            if next(count) == 2:
                next(run.critic.network.parameters()).data[0] = math.inf
            return loss

        run.critic.fit = poisoned

    with pytest.raises(SystemExit) as caught:
        run(spoil, gamma=0.5, max_train_iterations=9, checkpointing_steps=1)
    assert "--critic_learning_rate" in sentence(caught, capsys) and not (tmp_path / "out" / ADAPTER).exists()
    (saved,) = list_checkpoints(tmp_path / "out")
    assert all(
        tensor.isfinite().all()
        for tensor in load_checkpoint(tmp_path / "out", saved.name).groups["critic"].values()
        if tensor.is_floating_point()
    )


def test_a_critic_passes_over_a_gradient_that_is_no_number(run: Callable[..., None], tmp_path: Path) -> None:
    def spoil(run: Run) -> None:
        count = itertools.count()
        parameter = next(run.critic.network.parameters())
        parameter.register_hook(lambda gradient: gradient * math.nan if next(count) == 4 else gradient)

    run(spoil, gamma=0.5)
    critic = load_file(tmp_path / "out" / "critic" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in critic.values() if tensor.is_floating_point())


def test_a_critic_is_warmed_up_on_few_rollouts(run: Callable[..., None], tmp_path: Path) -> None:
    run(lambda _: None, gamma=0.5, warmup_rollouts=2)
    assert results_of(tmp_path / "out")["training"]["brakes"] == 0
    finite_adapter(tmp_path / "out")


# --- a reward that says nothing
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["pathwise", "step"])
def test_a_reward_predictor_that_answers_the_same_to_everything_is_refused(
    advantage: str,
    arguments: Arguments,
    tiny_reward_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictor = RewardPredictor.from_pretrained(tiny_reward_dir)
    predictor.head[-1].weight.data.zero_()
    predictor.save_pretrained(tmp_path / "constant")
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(advantage=advantage, reward_model_name_or_path=tmp_path / "constant"))
    assert ABOUT_PREDICTOR in sentence(caught, capsys) and not (tmp_path / "out" / ADAPTER).exists()


def test_a_teacher_that_sees_the_same_in_everything_is_refused(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(lambda run: calls_between(run.env.teacher.model.visual, 0, math.inf, 1.0))
    assert ABOUT_TEACHER in sentence(caught, capsys)


# --- a tracker that is down
# -----------------------------------------------------------------------------------


def of_tracker(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of a tracker."""
    return [r.getMessage() for r in caplog.records if r.name == tracking.__name__]


def test_a_tracker_that_cannot_begin_ends_the_run_before_it_has_cost_anything(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("a file where the tracker's directory should be")
    with pytest.raises(SystemExit) as caught:
        script.main(arguments(report_to="tensorboard", overwrite_output_dir=True))
    assert "--report_to none" in sentence(caught, capsys)
    assert not (tmp_path / "out" / "diagnostics.jsonl").exists()


def test_a_run_goes_on_without_a_tracker_that_fails(
    run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the tracker's own\nerror")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    run(lambda _: None, report_to="tensorboard", validation_steps=1)
    (said,) = of_tracker(caplog)
    assert "\n" not in said
    assert len((tmp_path / "out" / "diagnostics.jsonl").read_text().splitlines()) == 3
    assert results_of(tmp_path / "out")["training"]["iterations"] == 2
    finite_adapter(tmp_path / "out")


def test_a_tracker_that_fails_at_the_end_takes_nothing_away(
    run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(self: Any) -> None:
        raise TimeoutError("the tracker does not answer")

    monkeypatch.setattr(TensorBoardTracker, "finish", fail)
    run(lambda _: None, report_to="tensorboard")
    assert len(of_tracker(caplog)) == 1
    finite_adapter(tmp_path / "out")
