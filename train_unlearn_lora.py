#!/usr/bin/env python
"""Train a LoRA adapter that makes a Stable Diffusion pipeline unable to draw a concept.

Critic-guided reinforcement unlearning (arXiv 2601.03213): denoising is a sequential decision process, a
noise-conditioned reward predictor, and a timestep-aware critic if asked, value the noisy latent that a step
leads to, and clipped policy-gradient updates move the adapter along the gradients of that value.

    accelerate launch train_unlearn_lora.py --concept "Van Gogh style"
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from common.checkpoints import latest_checkpoint
from common.errors import friendly_errors, friendly_interrupts, friendly_memory
from common.files import make_directory
from common.interruption import leave
from common.lock import exclusive
from common.memory import out_of_memory
from common.processes import anywhere, processes
from hub.push import push_adapter, push_command
from pipelines.memory import flags_to_try
from training.baseline import measure_base
from training.config import RunConfig, parse_config
from training.control import Verdict
from training.cooldown import finish
from training.iteration import assign_credit, estimate_values, rollout, timed, update_critic, update_policy
from training.plan import print_plan
from training.previews import draw_base
from training.reporter import Reporter, log_start
from training.results import evaluate_run, save, save_config, tracker_settings
from training.run_state import RunState, begin
from training.setup import Run, prepare

logger = logging.getLogger(__name__)


def main(config: RunConfig) -> None:
    """A run from its settings: prepare, learn, save, evaluate, push; or say what it would do.

    Raises:
        SystemExit: with a sentence: code 2 where the settings are wrong, 1 where the run failed, 128 and more
            where it was interrupted.
    """
    with advise_on_memory(config), friendly_errors():
        run = prepare(config)
        if config.output.dry_run:
            return print_plan(run)
    with ExitStack() as held, advise_on_memory(run.config):
        with friendly_errors():
            if run.is_main:
                held.enter_context(exclusive(config.output.output_dir))
        with friendly_interrupts(partial(latest_checkpoint, config.output.output_dir)):
            train(run, config)
        if config.hub.push_to_hub and run.is_main:
            push(config)


def train(run: Run, given: RunConfig) -> None:
    """Learn; then save the adapter, evaluate it and write the card.

    Args:
        given: the settings as they were given, for the file that repeats the run.

    Raises:
        SystemExit: it was interrupted, and what it had learnt is in a checkpoint or, after the last
            iteration, in the adapter.
    """
    make_directory(given.output.output_dir)
    if run.is_main:
        save_config(given)
    run.tracking.start("train_unlearn_lora", tracker_settings(run.config))
    with run.interruption:
        with run.room:
            state, last = learn(run)
        save(run)
    with friendly_interrupts(unevaluated(given)):
        leave_if_interrupted(run)
        evaluate_run(run, state.progress, last)
        if run.is_main:
            directory = given.output.output_dir
            logger.info(f"Wrote {directory}: load it with pipe.load_lora_weights({str(directory)!r})")
        run.tracking.end()


def learn(run: Run) -> tuple[RunState, dict[str, float]]:
    """The algorithm. Returns what it came to and the metrics of the last iteration.

    Raises:
        SystemExit: it was interrupted, and what it had learnt is in a checkpoint.
    """
    started = time.perf_counter()
    base = measure_base(run)
    before = draw_base(run)
    state = begin(run, base, time.perf_counter() - started)
    log_start(run, base.acted)
    report = Reporter(run, state, before)
    while True:
        with timed(state):
            batch = rollout(run, state, base)
            verdict = state.judge(batch.metrics)
            if verdict is Verdict.STOP:
                finish(run, state, base, batch)
                break
            values = estimate_values(run, batch)
            if verdict is Verdict.KEEP:
                experience = assign_credit(run, base, batch, values)
                update_policy(run, state, base, batch, experience)
            update_critic(run, state, batch)
        report.iteration(batch)
    report.end(batch)
    return state, batch.metrics


def leave_if_interrupted(run: Run) -> None:
    """End without an evaluation if the run was interrupted during its last iteration."""
    if anywhere(run.interruption.received is not None):
        run.tracking.end()
        leave(run.interruption.received or signal.SIGTERM, unevaluated(run.config))


def unevaluated(config: RunConfig) -> str:
    """For a run that ends between its adapter and its results."""
    directory = config.output.output_dir
    return (
        f"The adapter is complete in {directory}, but not evaluated; `python -m evaluation --adapter {directory}` "
        "does that."
    )


def push(config: RunConfig) -> None:
    """Upload what the run has written; where that fails it ends with the reason and the command that tries
    again."""
    directory, private = config.output.output_dir, config.hub.hub_private_repo or None
    again = f"`{push_command(directory, config.repository, private)}` uploads the adapter."
    with friendly_errors(), friendly_interrupts(again):
        address = push_adapter(directory, config.repository, token=config.hub.hub_token, private=private)
        logger.info(f"Uploaded to {address}")


@contextmanager
def advise_on_memory(config: RunConfig) -> Iterator[None]:
    """A lack of memory ends in a sentence with the flags that would save some."""

    def advice() -> str:
        on_gpu = processes().device.type != "cpu"
        flags = flags_to_try(config.memory, config.environment.train_batch_size, on_gpu)
        return out_of_memory(flags, on_gpu)

    with friendly_memory(advice):
        yield


if __name__ == "__main__":
    main(parse_config())
