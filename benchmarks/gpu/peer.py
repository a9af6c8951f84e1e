"""TRL's DDPO and our trainer with its algorithm, on the bundled canvas; nobody judges what they learn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.ablation.run import TrialConfig, run_flags
from benchmarks.gpu.work import Measurement, Work
from benchmarks.peers import ours
from benchmarks.peers.settings import IMAGES, MATCHED, PEER_RELEASE
from benchmarks.profile import Stopwatch
from training.config import parse_config


def side_by_side(work: Work) -> Iterator[Measurement]:
    """Both at equal settings, the peer first."""
    budget = {"budget": work.scale.peer_budget}
    yield Measurement({"trainer": PEER_RELEASE, **budget}, partial(peer_pace, work))
    flags = list(work.scale.peer)
    yield Measurement({"trainer": "ours, matched", **budget, "flags": flags}, partial(our_pace, work))


def trial(work: Work) -> TrialConfig:
    """A run of either."""
    return TrialConfig("Van Gogh style", 0, 3e-3, work.scale.peer_budget, 1, (0,), Path("-"))


def peer_pace(work: Work) -> dict[str, float]:
    """Of TRL's trainer.

    Raises:
        ModuleNotFoundError: TRL, or what it needs, is not installed.
    """
    from benchmarks.peers.trl_ddpo import prepare_ours, watched_trainer  # imports TRL

    epochs = max(1, work.scale.peer_budget // IMAGES)
    with work.directory() as directory:
        trainer, watch = watched_trainer(prepare_ours(trial(work), directory), trial(work), directory)
        for epoch in range(1, epochs + 1):
            trainer.step(epoch, epoch)
    return pace(watch, rolled_out=epochs * IMAGES, learnt=epochs * IMAGES)


def our_pace(work: Work) -> dict[str, float]:
    """Of our trainer with the peer's algorithm. What it rolls out before the first update and to watch
    retention is not learnt from."""
    with work.directory() as directory:
        flags = run_flags(trial(work), [*MATCHED, *work.scale.peer, "--checkpointing_steps", "0"], directory)
        progress, watch = ours.train([*flags, "--evaluation_seeds"])
    learnt = parse_config(flags).schedule.images_per_iteration * progress.iteration
    return pace(watch, rolled_out=progress.images, learnt=learnt)


def pace(watch: Stopwatch, *, rolled_out: int, learnt: int) -> dict[str, float]:
    """Images a second of rollout and update."""
    return {"rollout": rolled_out / watch.seconds["rollout"], "update": learnt / watch.seconds["update"]}
