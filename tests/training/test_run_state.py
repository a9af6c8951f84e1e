"""What is decided about an iteration: keep the adapter, roll it back, or stop."""

from __future__ import annotations

import copy
import math
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from common.checkpoints import list_checkpoints, load_checkpoint
from common.errors import Unsound
from critic.critic import Critic
from critic.network import ValueNetwork
from pipelines.backbone import Backbone
from policy.policy import Policy
from policy.trajectory import Experience, Trajectory
from policy.update import UpdateStats
from training.baseline import Baseline
from training.collect import Batch
from training.config import parse_config
from training.control import RollbackRule, StopSignal, Verdict
from training.progress import Progress
from training.run_state import OUT_OF_ITERATIONS, RunState, begin

HEALTHY = {
    "forgotten": 0.5,
    "replaced": 0.25,
    "forget_reward": 0.1,
    "noisy_reward": 0.2,
    "contrast": 0.4,
    "retain_drop": 0.0,
    "retain_drop_error": 0.0,
}
NAN = HEALTHY | {"noisy_reward": math.nan}
LEAST_CONTRAST = 0.4
STEPS = 3
pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected call of"
)  # no optimizer steps before a schedule here


class Adapted(nn.Module):
    """In place of a UNet: a frozen layer with an adapter that begins as the identity."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(3, 3).requires_grad_(False)
        self.lora_A = nn.Linear(3, 2, bias=False)
        self.lora_B = nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.lora_B.weight)


def new_critic() -> Critic:
    torch.manual_seed(0)
    return Critic(
        ValueNetwork(4, 8, 6, width=8, condition_dim=16), 2, STEPS, learning_rate=1e-2, buffer_iterations=2
    )


def new_state(*line: str, learnt: bool = True) -> RunState:
    """The state before the first iteration.

    Args:
        learnt: whether the adapter does anything.
    """
    config, unet = (
        parse_config(["--concept", "cat", "--no-train_text_encoder", "--replay_iterations", "2", *line]),
        Adapted(),
    )
    if learnt:
        nn.init.normal_(unet.lora_B.weight)
    backbone = Backbone(SimpleNamespace(unet=unet))  # type: ignore[arg-type]
    policy = Policy(backbone, None, None, guidance_scale=5.0, batch_size=1)  # type: ignore[arg-type]
    trainable = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.optimizer.learning_rate)
    schedule = get_scheduler(
        config.optimizer.schedule,
        optimizer,
        num_warmup_steps=config.optimizer.lr_warmup_steps,
        num_training_steps=config.schedule.max_train_iterations,
    )
    return RunState(
        config,
        policy,
        optimizer,
        schedule,
        new_critic(),
        rollback=RollbackRule.of(config.rollback, LEAST_CONTRAST),
        replay=deque(maxlen=config.update.replay_iterations),
        progress=Progress(kl_coef=config.update.kl_coef),
        good=policy.state(),
        stop=StopSignal(config.schedule.target_unlearning_accuracy, config.schedule.patience),
    )


def experience(seed: int = 0) -> Experience:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, STEPS + 1, 4, 8, 8, generator=generator)
    trajectory = Trajectory(
        latents,
        latents[:, 1:],
        torch.randn(2, STEPS, generator=generator),
        torch.tensor([900, 600, 300, 0]),
        torch.tensor([0, 1]),
    )
    return Experience(trajectory, torch.randn(2, STEPS, generator=generator), torch.tensor([1, 0]))


def stats(**changes: Any) -> UpdateStats:
    usual = {"retain_kl": [0.05, 0.01], "step_kl": [0.1, 0.2], "grad_norm": [1.0, 1.0], "unet_samples": 8}
    return UpdateStats(**(usual | changes))


def move(state: RunState, by: float = 1.0) -> None:
    """As an update does."""
    for p in state.policy.denoiser.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, by)
    state.optimizer.step()
    state.optimizer.zero_grad()


def rate(state: RunState) -> float:
    return state.optimizer.param_groups[0]["lr"]


def is_adapter(state: RunState, expected: dict[str, torch.Tensor]) -> bool:
    """Whether the adapter is that, bit for bit."""
    now = state.policy.state()
    return now.keys() == expected.keys() and all(torch.equal(now[name], expected[name]) for name in now)


# --- keep


def test_a_sound_adapter_is_kept_as_the_good_one() -> None:
    state = new_state()
    before = state.policy.state()
    move(state)
    assert not is_adapter(state, before)
    assert state.judge(HEALTHY) is Verdict.KEEP
    assert is_adapter(state, state.good) and (state.reason, state.nonfinite) == (None, "")
    assert (state.progress.brakes, state.progress.stopped_by, state.progress.replaced) == (0, "", [0.25])
    good = copy.deepcopy(state.good)
    move(state)  # the good one is a copy
    assert not is_adapter(state, good)
    assert all(torch.equal(state.good[name], value) for name, value in good.items())


def test_within_the_bounds_of_the_settings_all_is_kept() -> None:
    state = new_state("--max_retain_drop", "0.5", "--max_retain_kl", "0.6", "--max_step_kl", "0.7")
    state.progress.retain_kl, state.progress.step_kl = 0.6, 0.7
    assert state.judge(HEALTHY | {"retain_drop": 0.5, "contrast": 0.25 * LEAST_CONTRAST}) is Verdict.KEEP


# --- roll back


@pytest.mark.parametrize(
    ("metrics", "progress", "flag"),
    [
        ({"retain_drop": 0.21}, {}, "--kl_coef"),
        ({"contrast": 0.09}, {}, "--anchor_kl_coef"),
        ({}, {"retain_kl": 0.31}, "--kl_coef"),
        ({}, {"step_kl": 3.1}, "--learning_rate"),
        ({}, {"step_kl": math.nan}, "--learning_rate"),
        ({"noisy_reward": math.nan}, {}, "reward.train"),
        ({"forget_reward": math.inf}, {}, "--clip_model"),
        ({"contrast": math.nan}, {}, "--anchor_kl_coef"),
        (dict.fromkeys(HEALTHY, math.nan), {}, "--kl_coef"),
    ],
)
def test_a_bad_adapter_is_taken_back_bit_for_bit(
    metrics: dict[str, float],
    progress: dict[str, float],
    flag: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = new_state("--learning_rate", "0.08")
    assert state.judge(HEALTHY) is Verdict.KEEP
    good = state.policy.state()
    state.record(experience(), stats())
    move(state)
    for name, value in progress.items():
        setattr(state.progress, name, value)
    assert len(state.replay) == 1 and not is_adapter(state, good)

    assert state.judge(HEALTHY | {"replaced": 1.0} | metrics) is Verdict.ROLL_BACK
    assert is_adapter(state, good) and len(state.replay) == 0
    assert rate(state) == 0.02 and state.lr_scheduler.base_lrs == [0.02]
    assert (state.progress.retain_kl, state.progress.step_kl, state.progress.brakes) == (0.0, 0.0, 1)
    assert state.progress.replaced == state.stop.recent == [] and not state.progress.stopped_by
    assert state.reason is not None and flag in state.reason and state.reason in caplog.text
    assert bool(state.nonfinite) == any(not math.isfinite(value) for value in metrics.values())

    assert state.judge(HEALTHY) is Verdict.KEEP and state.reason is None and state.nonfinite == ""
    state.record(experience(), stats())
    assert rate(state) == 0.02 and state.progress.brakes == 1  # a schedule does not bring the rate back


def test_each_rollback_quarters_the_rate_of_any_schedule() -> None:
    state = new_state("--lr_scheduler", "linear", "--max_train_iterations", "4", "--learning_rate", "0.64")
    bad = HEALTHY | {"retain_drop": 1.0}
    state.judge(HEALTHY)
    state.record(experience(), stats())
    assert rate(state) == pytest.approx(0.48)
    assert state.judge(bad) is state.judge(bad) is Verdict.ROLL_BACK
    assert rate(state) == pytest.approx(0.03) and state.progress.brakes == 2
    state.judge(HEALTHY)
    state.record(experience(), stats())
    assert rate(state) == pytest.approx(0.02)  # half of the way, at a sixteenth


def test_what_is_not_sound_does_not_become_the_good_one() -> None:
    state = new_state()
    good = copy.deepcopy(state.good)
    for _ in range(2):
        move(state)
        assert state.judge(HEALTHY | {"retain_drop": 1.0}) is Verdict.ROLL_BACK
        assert is_adapter(state, good) and is_adapter(state, state.good)


# --- NaN


def test_nan_after_a_good_state_is_rolled_back() -> None:
    state = new_state()
    state.judge(HEALTHY)
    move(state)
    assert state.judge(NAN) is Verdict.ROLL_BACK and state.nonfinite
    assert is_adapter(state, state.good) and state.judge(HEALTHY) is Verdict.KEEP


@pytest.mark.parametrize("first", [NAN, HEALTHY | {"retain_drop": 1.0}], ids=["nan", "another reason"])
def test_nan_with_the_good_adapter_is_nothing_to_build_upon(first: dict[str, float]) -> None:
    state = new_state()
    move(state)
    assert state.judge(first) is Verdict.ROLL_BACK
    with pytest.raises(Unsound, match=r"reward\.train"):
        state.judge(NAN)


def test_nan_and_nan_with_a_sound_iteration_between_is_two_rollbacks() -> None:
    state = new_state()
    verdicts = [state.judge(metrics) for metrics in (NAN, HEALTHY, NAN, HEALTHY)]
    assert verdicts == [Verdict.ROLL_BACK, Verdict.KEEP] * 2 and state.progress.brakes == 2


# --- stop


def test_it_stops_where_the_target_is_reached_over_its_patience() -> None:
    state = new_state("--target_unlearning_accuracy", "0.9", "--patience", "2")
    shares = (1.0, 0.7, 0.9, 1.0)
    verdicts = [state.judge(HEALTHY | {"replaced": share}) for share in shares]
    assert verdicts == [*[Verdict.KEEP] * 3, Verdict.STOP]
    assert state.progress.stopped_by and not state.out_of_iterations
    assert state.progress.replaced == [0.9, 1.0] and state.reason is None and is_adapter(state, state.good)


def test_a_rollback_begins_the_patience_anew() -> None:
    state = new_state("--target_unlearning_accuracy", "0.9", "--patience", "2")
    done = HEALTHY | {"replaced": 1.0}
    verdicts = [state.judge(m) for m in (done, done | {"retain_drop": 1.0}, done, done)]
    assert verdicts == [Verdict.KEEP, Verdict.ROLL_BACK, Verdict.KEEP, Verdict.STOP]


def test_patience_goes_on_where_a_run_is_resumed() -> None:
    state = new_state("--target_unlearning_accuracy", "0.9", "--patience", "2")
    state.stop.recent = [0.95]
    assert state.judge(HEALTHY | {"replaced": 0.9}) is Verdict.STOP


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_it_stops_after_too_many_rollbacks_with_the_good_adapter(limit: int) -> None:
    state = new_state("--max_brakes", str(limit))
    good, bad = copy.deepcopy(state.good), HEALTHY | {"retain_drop": 1.0}
    for _ in range(limit):
        move(state)
        assert state.judge(bad) is Verdict.ROLL_BACK
    move(state)
    assert state.judge(bad) is Verdict.STOP
    assert is_adapter(state, good) and state.reason is not None and state.progress.brakes == limit + 1
    assert state.reason in state.progress.stopped_by and not state.out_of_iterations


def test_it_stops_after_the_last_iteration() -> None:
    state = new_state("--max_train_iterations", "3")
    state.progress.iteration = 2
    assert state.judge(HEALTHY) is Verdict.KEEP and not state.out_of_iterations
    state.progress.iteration = 3
    move(state)
    assert state.judge(HEALTHY) is Verdict.STOP
    assert state.progress.stopped_by == OUT_OF_ITERATIONS and state.out_of_iterations
    assert is_adapter(state, state.good) and state.progress.brakes == 0


def test_a_bad_last_iteration_is_taken_back_and_ends_the_run() -> None:
    state = new_state("--max_train_iterations", "3")
    good, state.progress.iteration = copy.deepcopy(state.good), 3
    move(state)
    assert state.judge(HEALTHY | {"retain_drop": 1.0}) is Verdict.STOP
    assert state.out_of_iterations and state.reason is not None and is_adapter(state, good)


def test_a_target_that_is_reached_in_the_last_iteration_is_reached() -> None:
    state = new_state("--max_train_iterations", "3", "--patience", "1")
    state.progress.iteration = 3
    assert state.judge(HEALTHY | {"replaced": 1.0}) is Verdict.STOP and not state.out_of_iterations


def test_an_adapter_that_never_had_a_finite_gradient_has_learnt_nothing() -> None:
    """Its rollbacks are used up, and what it would end with is the base."""
    state = new_state("--max_brakes", "1", learnt=False)
    state.progress.step_kl = math.nan
    assert state.judge(HEALTHY) is Verdict.ROLL_BACK
    state.progress.step_kl = math.nan
    with pytest.raises(Unsound, match="--learning_rate"):
        state.judge(HEALTHY)


@pytest.mark.parametrize(
    ("learnt", "step_kl"), [(True, math.nan), (False, 9.0)], ids=["it has learnt", "its gradients are finite"]
)
def test_otherwise_too_many_rollbacks_end_with_what_there_is(learnt: bool, step_kl: float) -> None:
    state = new_state("--max_brakes", "0", learnt=learnt)
    state.progress.step_kl = step_kl
    assert state.judge(HEALTHY) is Verdict.STOP


# --- what an update leaves


def test_an_update_is_recorded() -> None:
    state = new_state("--lr_scheduler", "linear", "--max_train_iterations", "4", "--learning_rate", "0.4")
    found = state.record(experience(), stats(first_ratio_deviation=0.0))
    progress = state.progress
    assert found == {"kl_coef": 20.0} and rate(state) == pytest.approx(0.3)
    assert (progress.retain_kl, progress.step_kl, progress.unet_samples) == (0.01, 0.2, 8)
    assert progress.first_ratio_deviation == 0.0
    state.record(experience(), stats(first_ratio_deviation=0.5))
    assert progress.first_ratio_deviation == 0.0 and progress.unet_samples == 16  # the first of the run


def test_what_may_be_replayed_is_the_last_of_it() -> None:
    state, made = new_state("--replay_iterations", "2"), [experience(seed) for seed in range(3)]
    for one in made:
        state.record(one, stats())
    assert list(state.replay) == made[1:]
    state = new_state("--replay_iterations", "0")
    state.record(made[0], stats())
    assert not state.replay


@pytest.mark.parametrize(("skipped", "moved"), [(0, 0.2), (1, 0.2), (2, math.nan)])
def test_an_update_of_which_every_step_was_skipped_has_gone_nowhere(skipped: int, moved: float) -> None:
    state = new_state()
    state.record(experience(), stats(skipped=skipped))
    assert state.progress.step_kl == pytest.approx(moved, nan_ok=True)


@pytest.mark.parametrize(
    ("target", "kl", "after"),
    [(None, 9.0, 20.0), ("0.1", 0.2, 40.0), ("0.1", 0.1, 20.0), ("0.1", 0.05, 10.0), ("0", 0.2, 20.0)],
)
def test_the_weight_of_the_kl_follows_its_target(target: str | None, kl: float, after: float) -> None:
    state = new_state(*([] if target is None else ["--retain_kl_target", target]))
    found = state.record(experience(), stats(retain_kl=[9.0, kl]))
    assert found["kl_coef"] == 20.0  # what this update was made with
    assert state.progress.kl_coef == after and state.config.update.kl_coef == 20.0


# --- checkpoints


def test_a_state_comes_back_from_its_checkpoint_and_goes_on_as_the_other_does(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--lr_scheduler", "linear", "--retain_kl_target", "0.1"]
    saved = new_state(*line)
    saved.judge(HEALTHY)
    move(saved)
    saved.judge(HEALTHY | {"retain_drop": 1.0})
    for seed in range(2):
        saved.judge(HEALTHY)
        saved.record(experience(seed), stats())
        move(saved)
        saved.progress.iteration += 1
    saved.save({"forget_prompts": None})
    checkpoint = load_checkpoint(tmp_path, "latest")
    assert checkpoint.numbers["iteration"] == 2 and checkpoint.numbers["inputs"] == {"forget_prompts": None}

    resumed = new_state(*line)
    resumed.restore(checkpoint, torch.device("cpu"), offload=False)
    assert resumed.progress == saved.progress and resumed.progress.brakes == 1
    assert is_adapter(resumed, saved.policy.state()) and not is_adapter(resumed, resumed.good)
    assert rate(resumed) == rate(saved) and resumed.stop.recent == saved.stop.recent == [0.25, 0.25]
    assert len(resumed.replay) == 2 and resumed.replay.maxlen == 2
    for one, other in zip(resumed.replay, saved.replay, strict=True):
        for name, tensor in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor)
    for state in (saved, resumed):
        move(state, by=-0.5)
        state.record(experience(7), stats())
        move(state, by=0.1)
    assert is_adapter(resumed, saved.policy.state()) and rate(resumed) == rate(saved)
    assert saved.judge(HEALTHY) is resumed.judge(HEALTHY) is Verdict.KEEP
    for state in (saved, resumed):
        move(state)
        state.judge(HEALTHY | {"retain_drop": 1.0})
    assert is_adapter(resumed, saved.policy.state()) and rate(resumed) == rate(saved)


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    state = new_state("--output_dir", str(tmp_path), "--checkpoints_total_limit", "2")
    for iteration in range(1, 4):
        state.progress.iteration = iteration
        state.save({})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_a_run_that_is_out_of_iterations_says_how_to_go_on(tmp_path: Path) -> None:
    state = new_state("--output_dir", str(tmp_path), "--max_train_iterations", "7")
    said = state.what_is_missing({"forgotten": 0.75, "replaced": 0.4})
    assert "25 %" in said and "35 %" in said and "--max_train_iterations 14" in said
    assert "--resume_from_checkpoint" not in said and "--learning_rate" in said
    state.save({})
    said = state.what_is_missing({"forgotten": 0.75, "replaced": 0.4})
    assert "--resume_from_checkpoint latest --max_train_iterations 14" in said


def test_a_drop_that_few_images_may_have_by_chance_undoes_nothing() -> None:
    state = new_state()
    assert state.judge(HEALTHY | {"retain_drop": 0.3, "retain_drop_error": 0.1}) is Verdict.KEEP
    assert state.judge(HEALTHY | {"retain_drop": 0.3, "retain_drop_error": 0.05}) is Verdict.ROLL_BACK


# --- the beginning


def a_run(state: RunState, **changes: Any) -> tuple[SimpleNamespace, Baseline]:
    """What `begin` looks at of a run, and a base of two and four rollouts."""
    trajectory = experience().trajectory
    acted = Batch(Trajectory.cat([trajectory, trajectory]), None, HEALTHY)  # type: ignore[arg-type]
    base = Baseline(trajectory, 0.3, 0.2, acted, gradient_scale=None, drawn=6)
    run = {
        "config": state.config,
        "policy": state.policy,
        "optimizer": state.optimizer,
        "critic": state.critic,
        "env": SimpleNamespace(kernel=SimpleNamespace(num_steps=STEPS)),
        "accelerator": SimpleNamespace(device=torch.device("cpu")),
        "checkpoint": None,
        "is_main": True,
    }
    return SimpleNamespace(**(run | changes)), base


def test_a_run_begins_with_what_its_base_has_cost(tmp_path: Path) -> None:
    made = new_state("--output_dir", str(tmp_path), "--kl_coef", "5", "--max_step_kl", "2", "--patience", "4")
    made.save({})  # of a run that is being overwritten
    run, base = a_run(made)
    state = begin(run, base, seconds=1.5)  # type: ignore[arg-type]
    assert state.progress == Progress(images=6, unet_samples=2 * STEPS * 6, seconds=1.5, kl_coef=5.0)
    assert state.rollback == RollbackRule.of(made.config.rollback, 0.2) and state.rollback.max_step_kl == 2
    assert (state.stop.target, state.stop.patience, state.stop.recent) == (0.95, 4, [])
    assert is_adapter(state, state.good) and not state.replay and state.replay.maxlen == 2
    assert list_checkpoints(tmp_path) == []


def test_a_process_that_does_not_write_deletes_nothing(tmp_path: Path) -> None:
    made = new_state("--output_dir", str(tmp_path))
    made.save({})
    run, base = a_run(made, is_main=False)
    begin(run, base, seconds=0.0)  # type: ignore[arg-type]
    assert len(list_checkpoints(tmp_path)) == 1


def test_what_a_killed_process_has_left_beyond_the_limit_goes_when_it_is_resumed(tmp_path: Path) -> None:
    """But nothing newer than what it is resumed from."""
    made = new_state("--output_dir", str(tmp_path), "--checkpoints_total_limit", "0")
    move(made)
    for iteration in range(1, 5):
        made.progress.iteration = iteration
        made.save({})
    for given, left in (("checkpoint-1", [1, 2, 3, 4]), ("checkpoint-3", [2, 3, 4]), ("latest", [3, 4])):
        fresh = new_state("--output_dir", str(tmp_path), "--checkpoints_total_limit", "2")
        run, base = a_run(fresh, checkpoint=load_checkpoint(tmp_path, given))
        begin(run, base, seconds=9.0)  # type: ignore[arg-type]
        assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{i}" for i in left]


def test_a_run_that_resumes_begins_where_it_was(tmp_path: Path) -> None:
    made = new_state("--output_dir", str(tmp_path))
    made.judge(HEALTHY)
    made.record(experience(), stats())
    move(made)
    made.progress.iteration = 4
    made.save({})
    fresh = new_state("--output_dir", str(tmp_path))
    run, base = a_run(fresh, checkpoint=load_checkpoint(tmp_path, "latest"))
    state = begin(run, base, seconds=9.0)  # type: ignore[arg-type]
    assert state.progress == made.progress and is_adapter(state, made.policy.state())
    assert len(list_checkpoints(tmp_path)) == 1 and state.stop.recent == [0.25]
