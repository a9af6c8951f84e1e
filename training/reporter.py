"""What a run tells while it goes on: progress bar, trackers, diagnostics, previews, checkpoints."""

from __future__ import annotations

import logging
import signal

from PIL import Image
from tqdm.auto import tqdm

from common.checkpoints import latest_checkpoint, list_checkpoints
from common.interruption import leave
from common.memory import peak_memory_mb
from common.processes import anywhere
from common.room import going_on
from hub.results import DIAGNOSTICS_NAME
from training.collect import Batch
from training.diagnostics import Diagnostics
from training.metrics import BAR
from training.previews import log_validation
from training.run_state import RunState
from training.setup import Run

logger = logging.getLogger(__name__)


class Reporter:
    """Reports a run's iterations; the processes call it together."""

    def __init__(self, run: Run, state: RunState, before: list[Image.Image]) -> None:
        """`before` are the previews of the base."""
        self.run, self.state, self.before = run, state, before
        self.diagnostics = Diagnostics(run.config.output.output_dir / DIAGNOSTICS_NAME)
        if run.is_main:
            self.diagnostics.begin(state.progress.iteration)
        self.bar = tqdm(
            total=run.config.schedule.max_train_iterations,
            initial=state.progress.iteration,
            desc="Iterations",
            disable=not run.accelerator.is_local_main_process,
        )

    def log(self, batch: Batch) -> None:
        """Send an iteration's metrics to the trackers and the diagnostics."""
        iteration = self.state.progress.iteration
        self.run.tracking.log(batch.metrics, iteration)
        if self.run.is_main:
            with going_on():
                self.diagnostics.write(iteration, batch.metrics)

    def iteration(self, batch: Batch) -> None:
        """An iteration has ended: log it, show it, save it, and leave if the run was interrupted.

        Raises:
            SystemExit: it was interrupted, and what it had learnt is in a checkpoint.
        """
        run, progress, config = self.run, self.state.progress, self.run.config
        self.log(batch)
        progress.iteration += 1
        self.bar.update()
        shown = {name: f"{batch.metrics[key]:.3g}" for name, key in BAR.items() if key in batch.metrics}
        self.bar.set_postfix(shown)
        every = config.validation.validation_steps
        if run.is_main and every and progress.iteration % every == 0:
            with going_on():
                log_validation(run, self.before, progress.iteration)
        interrupted = anywhere(run.interruption.received is not None)
        every = config.output.checkpointing_steps
        if interrupted:
            run.room.give()
        if run.is_main and (interrupted or (every and progress.iteration % every == 0)):
            with going_on():
                self.state.save(run.inputs)
        run.accelerator.wait_for_everyone()
        if interrupted:
            run.tracking.end()
            leave(run.interruption.received or signal.SIGTERM, self.where_it_stopped())

    def where_it_stopped(self) -> str:
        """What an interrupted run has come to, and how to go on, by the checkpoints that there are."""
        directory, iteration = self.run.config.output.output_dir, self.state.progress.iteration
        if f"checkpoint-{iteration}" in {path.name for path in list_checkpoints(directory)}:
            return (
                f"stopped after iteration {iteration}, which is saved; the same command with "
                "--resume_from_checkpoint latest goes on."
            )
        lost = (
            f"stopped after iteration {iteration}, which could not be saved. {latest_checkpoint(directory)}"
        )
        return lost.strip()

    def end(self, batch: Batch) -> None:
        """The run has ended: log its last metrics, and say why it ended."""
        self.log(batch)
        self.bar.close()
        progress, schedule = self.state.progress, self.run.config.schedule
        progress.peak_memory_mb = peak_memory_mb()
        logger.info(f"Stopped after {progress.iteration} iterations: {progress.stopped_by}")
        if self.state.out_of_iterations and batch.metrics["replaced"] < schedule.target_unlearning_accuracy:
            logger.warning(self.state.what_is_missing(batch.metrics))


def log_start(run: Run, base: Batch) -> None:
    """Say what is about to be trained, and warn of a concept that the base does not draw."""
    env, spec = run.env, run.env.spec
    shown = 100 * (1 - base.metrics["forgotten"])
    trainable = sum(p.numel() for p in run.denoiser.parameters() if p.requires_grad)
    logger.info("***** Running training *****")
    logger.info(f"  Concept = {', '.join(spec.concepts)}")
    logger.info(f"  Forget prompts = {len(spec.forget_prompts)}, retain prompts = {len(spec.retain_prompts)}")
    logger.info(f"  Trainable parameters = {trainable:,}")
    logger.info(f"  Processes = {run.accelerator.num_processes}, device = {run.accelerator.device}")
    logger.info(
        f"  Base: {shown:.1f} % of its images of the concept show it, "
        f"{100 * base.metrics['recognised']:.1f} % of the others their own prompt"
    )
    for concept in spec.unnamed:
        kind = spec.kinds[spec.concepts.index(concept)]
        logger.warning(
            f'No known prompt names "{concept}"; it is asked for as one asks for its kind, {kind}. '
            "Give prompts the base draws with --forget_prompts FILE, or the kind with --concept_kind."
        )
    for concept, texts in env.spec.confusable.items():
        logger.warning(
            f'CLIP hardly tells "{concept}" from {", ".join(texts[:5])}; these are neither erased nor retained. '
            "Name them in --concept to erase them too, or in --retain_prompts FILE to keep them."
        )
    if shown < 50:
        logger.warning(
            f"The base draws the concept in only {shown:.0f} % of the images that ask for it, as the teacher sees "
            "it. Is it spelled as the base knows it?"
        )
