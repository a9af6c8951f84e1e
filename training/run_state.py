"""What a run carries from iteration to iteration: all of it goes into its checkpoints and comes back from
them."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from common.checkpoints import (
    Checkpoint,
    drop_oldest,
    entries_of,
    list_checkpoints,
    load_optimizer_tensors,
    numbered,
    optimizer_tensors,
    save_checkpoint,
)
from common.errors import Unsound
from common.files import discard
from critic.critic import Critic
from policy.lora import is_identity
from policy.policy import Policy
from policy.trajectory import Experience
from policy.update import UpdateStats
from training.baseline import Baseline
from training.checks import fixed_settings
from training.config import RunConfig
from training.control import RollbackRule, StopSignal, Verdict, adapt_coefficient
from training.progress import Progress
from training.setup import Run
from training.soundness import nonfinite_cause
from training.text import start_in_text

logger = logging.getLogger(__name__)


AFTER_A_ROLLBACK = 0.25
"""What is left of the learning rate: three rollbacks make a rate sixty times smaller."""
Z_95 = 1.645
"""Standard errors by which a mean of few images is above what it surely is, one-sided at 95 %."""
OUT_OF_ITERATIONS = "--max_train_iterations"


@dataclass
class RunState:
    """The state of a run between two iterations.

    Attributes:
        replay: experiences of earlier iterations that may be learnt from again.
        good: the adapter as it was when its images were last found sound.
        reason: why the last images were not, if so.
        nonfinite: which of their metrics was NaN or infinite, and why; empty if none was.
    """

    config: RunConfig
    policy: Policy
    optimizer: Any
    lr_scheduler: Any
    critic: Critic
    rollback: RollbackRule
    replay: deque[Experience]
    progress: Progress
    good: dict[str, torch.Tensor]
    stop: StopSignal
    reason: str | None = None
    nonfinite: str = ""

    def judge(self, metrics: Mapping[str, float]) -> Verdict:
        """Decide about an iteration by the metrics of its images; a bad adapter is taken back at once.

        Raises:
            Unsound: the last good adapter draws NaN too, or nothing can be learnt.
        """
        progress, was_good = self.progress, self.reason is not None
        self.nonfinite = nonfinite_cause(metrics)
        if self.nonfinite and was_good:
            raise Unsound(f"With the last good state of the adapter too, {self.nonfinite}.")
        surely = metrics["retain_drop"] - Z_95 * metrics["retain_drop_error"]
        self.reason = (
            self.rollback.reason(surely, progress.retain_kl, progress.step_kl, metrics["contrast"])
            or self.nonfinite
            or None
        )
        if self.reason:
            self._roll_back(self.reason)
        else:
            self.good = self.policy.state()
        reached = self.reason is None and self.stop.update(metrics["replaced"])
        progress.stopped_by = self._why_stop(reached)
        progress.replaced = self.stop.recent
        if progress.stopped_by:
            return Verdict.STOP
        return Verdict.ROLL_BACK if self.reason else Verdict.KEEP

    def record(self, experience: Experience, stats: UpdateStats) -> dict[str, float]:
        """Take note of an update that was made by `experience`; the settings that it leaves, as metrics."""
        progress = self.progress
        self.replay.append(experience)
        self.lr_scheduler.step()
        progress.retain_kl = stats.retain_kl[-1]
        progress.step_kl = stats.step_kl[-1] if stats.skipped < len(stats.grad_norm) else math.nan
        if progress.first_ratio_deviation is None:
            progress.first_ratio_deviation = stats.first_ratio_deviation
        progress.unet_samples += stats.unet_samples
        metrics = {"kl_coef": progress.kl_coef}
        if target := self.config.update.retain_kl_target:
            progress.kl_coef = adapt_coefficient(progress.kl_coef, progress.retain_kl, target)
        return metrics

    def _roll_back(self, reason: str) -> None:
        """Put the last good adapter back, drop what was learnt since, and learn at a smaller rate."""
        progress = self.progress
        progress.brakes += 1
        logger.warning(
            f"Rollback: {reason}; back to the last good state at {AFTER_A_ROLLBACK:g} times the learning rate."
        )
        exhausted = progress.brakes > self.config.rollback.max_brakes
        if exhausted and not math.isfinite(progress.step_kl) and is_identity(self.good):
            raise Unsound(f"The adapter has learnt nothing: {reason}.")
        self.policy.load_state(self.good)
        self.replay.clear()
        self.lr_scheduler.base_lrs = [rate * AFTER_A_ROLLBACK for rate in self.lr_scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= AFTER_A_ROLLBACK
        progress.retain_kl = progress.step_kl = 0.0
        self.stop.recent = []

    def _why_stop(self, target_reached: bool) -> str:
        """The reason to end the run here, or an empty text."""
        schedule, limit = self.config.schedule, self.config.rollback.max_brakes
        if target_reached:
            return (
                f"{100 * schedule.target_unlearning_accuracy:g} % of the images of the last {schedule.patience} "
                "iterations showed something else instead"
            )
        if self.stop.stands_still:
            return (
                f"the share of images that show something else instead, {100 * fmean(self.stop.recent):.0f} %, no "
                "longer rises"
            )
        if self.progress.brakes > limit:
            return (
                f"more than {limit} rollbacks were needed, the last time because {self.reason}; the adapter is "
                "the last good state"
            )
        if self.progress.iteration >= schedule.max_train_iterations:
            return OUT_OF_ITERATIONS
        return ""

    @property
    def policy_is_base(self) -> bool:
        """Whether nothing has been changed yet."""
        return self.progress.iteration == 0 and is_identity(self.policy.state())

    @property
    def out_of_iterations(self) -> bool:
        """Whether the run ended for no other reason."""
        return self.progress.stopped_by == OUT_OF_ITERATIONS

    def what_is_missing(self, last: Mapping[str, float]) -> str:
        """What a run that is out of iterations has come to, by its last metrics, and how to go on."""
        longer = f"--max_train_iterations {2 * self.config.schedule.max_train_iterations}"
        resume = f"the same command with --resume_from_checkpoint latest {longer} goes on"
        if not list_checkpoints(self.config.output.output_dir):
            resume = f"take {longer}"
        return (
            f"{100 * (1 - last['forgotten']):.0f} % of the last images still show the concept, and "
            f"{100 * (last['forgotten'] - last['replaced']):.0f} % nothing that has a name in its place. If these "
            f"numbers were falling, {resume}; if they hardly moved, begin anew with four times the "
            "--learning_rate: what is too much is rolled back."
        )

    def save(self, inputs: dict[str, str | None]) -> None:
        """Write a checkpoint of this iteration, with what a run that goes on from it must share.

        Raises:
            OSError: it could not be written.
        """
        groups = {
            "lora": self.policy.state(),
            "good": self.good,
            "optimizer": optimizer_tensors(self.optimizer),
            "critic": self.critic.state_dict(),
            "replay": numbered(experience.state_dict() for experience in self.replay),
        }
        numbers = {
            "progress": asdict(self.progress),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "settings": fixed_settings(self.config),
            "inputs": inputs,
        }
        output = self.config.output
        save_checkpoint(
            output.output_dir, self.progress.iteration, groups, numbers, output.checkpoints_total_limit
        )

    def restore(self, checkpoint: Checkpoint, device: torch.device, offload: bool) -> None:
        """Put back what `save` wrote; trajectories stay in main memory if told to `offload`."""
        groups, numbers = checkpoint
        self.policy.load_state(groups["lora"])
        load_optimizer_tensors(self.optimizer, groups["optimizer"])
        self.critic.load_state_dict(groups["critic"], offload)
        self.replay.clear()
        self.replay.extend(
            Experience.from_state_dict(entry, device, offload)
            for entry in entries_of(groups.get("replay", {}))
        )
        self.lr_scheduler.load_state_dict(numbers["lr_scheduler"])
        for group in self.optimizer.param_groups:
            group["lr"] = numbers["learning_rate"]
        self.progress, self.good = Progress(**numbers["progress"]), groups["good"]
        self.stop.recent = self.progress.replaced


def begin(run: Run, base: Baseline, seconds: float) -> RunState:
    """The state before the first iteration, or that of the checkpoint that the run resumes from.

    Args:
        seconds: what measuring the base took.
    """
    config = run.config
    schedule = get_scheduler(
        config.optimizer.schedule,
        run.optimizer,
        num_warmup_steps=config.optimizer.lr_warmup_steps,
        num_training_steps=config.schedule.max_train_iterations,
    )
    state = RunState(
        config,
        run.policy,
        run.optimizer,
        schedule,
        run.critic,
        rollback=RollbackRule.of(config.rollback, base.least_contrast),
        replay=deque(maxlen=config.update.replay_iterations),
        progress=Progress(
            images=base.drawn,
            unet_samples=run.policy.branches * run.env.kernel.num_steps * base.drawn,
            seconds=seconds,
            kl_coef=config.update.kl_coef,
        ),
        good=run.policy.state(),
        stop=StopSignal(
            config.schedule.target_unlearning_accuracy,
            config.schedule.patience,
            config.schedule.plateau_iterations,
        ),
    )
    if run.checkpoint:
        state.restore(run.checkpoint, run.accelerator.device, config.memory.offload_trajectories)
        logger.info(f"Resuming after iteration {state.progress.iteration}")
        if run.is_main:
            output = config.output
            drop_oldest(output.output_dir, state.progress.iteration, output.checkpoints_total_limit)
        return state
    if run.policy.encoders:
        start_in_text(run, base)
    if run.is_main:
        for stale in list_checkpoints(config.output.output_dir):  # of a run that is being overwritten
            discard(stale)
    return state
