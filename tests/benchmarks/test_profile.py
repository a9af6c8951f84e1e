from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.profile import BACKWARD, FORWARD, LEARNING, PARTS, UNET, Profile, profile, table
from benchmarks.stopwatch import Stopwatch


def test_a_second_counts_once_in_the_innermost_part() -> None:
    watch = Stopwatch()
    inner = watch.timed("inner", lambda: time.sleep(0.05))
    outer = watch.timed("outer", lambda: (inner(), inner()))
    outer()
    assert watch.seconds["inner"] >= 0.1 and watch.seconds["outer"] < 0.05
    assert watch.calls == {"inner": 2, "outer": 1}


def test_every_part_of_a_run_is_found(arguments: Callable[..., argparse.Namespace], tmp_path: Path) -> None:
    """The UNet is asked as often as the settings say: 2 rollouts an iteration, and in updates reference,
    policy, retain and worst-case states a term."""
    (tmp_path / "out").mkdir()
    before = [getattr(owner, function) for owner, function, _ in PARTS]
    args = arguments(
        overwrite_output_dir=True,
        max_train_iterations=2,
        cooldown_updates=0,
        images_per_iteration=4,
        train_timestep_fraction=1.0,
        gamma=0.5,
        max_step_kl=1e9,
        target_kl=1e9,
    )
    found = profile(args)
    assert [getattr(owner, function) for owner, function, _ in PARTS] == before
    assert found.iterations == 2 and set(found.parts) == {*UNET, *(name for *_, name in PARTS)}
    terms, branches = 2 * (args.num_inference_steps - args.masked_steps), 2
    assert (
        found.calls[FORWARD] == 3 * 2 * args.num_inference_steps + terms
    )  # with a critic, all of the iterations and the last look roll out
    assert found.calls[LEARNING] == found.calls[BACKWARD] == 3 * terms
    assert (
        found.samples[LEARNING]
        == found.samples[BACKWARD]
        == terms * branches * (2 * args.images_per_iteration + args.retain_batch_size)
    )
    assert 0 < sum(found.parts.values()) <= found.total and 0 < found.overhead < 1
    assert found.operations > 0 and found.peak > 0 and 0 < found.utilisation(*UNET) < 2


def test_the_table_adds_up() -> None:
    seconds, calls = (
        {FORWARD: 4.0, LEARNING: 2.0, BACKWARD: 2.0, "critic": 1.0},
        {FORWARD: 32, LEARNING: 8, BACKWARD: 8, "critic": 2},
    )
    found = Profile(2, 10.0, seconds, calls, {FORWARD: 300, LEARNING: 100, BACKWARD: 100}, 10**9, 1e11)
    text = table(found)
    assert (
        "| UNet, forward | 2.000 | 40.0 % | 16 | 75 % |" in text
        and "| everything else | 0.500 | 10.0 % |  |  |" in text
    )
    assert "| **together** | **5.000** | of which overhead: **20.0 %** | | |" in text
    assert text.endswith(
        "1 GFLOP a sample forward, 0.25 TFLOP an iteration. A large matrix product reaches 0.1 TFLOP/s; the UNet 62 % of it, in updates 50 %."
    )
