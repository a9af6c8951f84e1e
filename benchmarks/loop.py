"""The training script's loop, for benchmarks that watch its parts from within the process.

Its parts are the script's own. It writes diagnostics and checkpoints, draws no previews, and cannot be
interrupted. `stage` is entered around what has no object of its own to be watched on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from training.baseline import Baseline
from training.control import Verdict
from training.cooldown import finish
from training.iteration import assign_credit, estimate_values, rollout, timed, update_critic, update_policy
from training.reporter import Reporter
from training.run_state import RunState
from training.setup import Run

CREDIT, CRITIC = "value gradients of the reward predictor", "critic"
"""The stages."""

Stage = Callable[[str], AbstractContextManager[object]]


def unwatched(stage: str) -> AbstractContextManager[object]:
    """For a loop that nobody watches."""
    return nullcontext()


def learn(run: Run, base: Baseline, state: RunState, *, stage: Stage = unwatched) -> None:
    """Iterate until the run ends."""
    run.config.output.output_dir.mkdir(parents=True, exist_ok=True)
    report = Reporter(run, state, before=[])
    while True:
        with timed(state):
            batch = rollout(run, state, base)
            verdict = state.judge(batch.metrics)
            if verdict is Verdict.STOP:
                finish(run, state, base, batch)
                break
            values = estimate_values(run, batch)
            if verdict is Verdict.KEEP:
                with stage(CREDIT):
                    experience = assign_credit(run, base, batch, values)
                update_policy(run, state, base, batch, experience)
            with stage(CRITIC):
                update_critic(run, state, batch)
        report.iteration(batch)
    report.end(batch)
