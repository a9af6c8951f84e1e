from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_pipelines import FLOWS, save_sd1
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory.models import MODELS
from benchmarks.profile import (
    BACKWARD,
    DENOISER,
    FORWARD,
    LEARNING,
    PARTS,
    Profile,
    Stopwatch,
    forward_operations,
    matrix_peak,
    profile,
    table,
    watched,
    watched_denoiser,
)
from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base, load_pipeline
from training.config import RunConfig


def test_a_second_counts_once_in_the_innermost_part() -> None:
    watch = Stopwatch()
    inner = watch.timed("inner", lambda: time.sleep(0.05))
    outer = watch.timed("outer", lambda: (inner(), inner()))
    outer()
    assert watch.seconds["inner"] >= 0.1 and watch.seconds["outer"] < 0.05
    assert watch.calls == {"inner": 2, "outer": 1}


def test_the_watch_adds_up_also_what_fails() -> None:
    watch = Stopwatch()

    def fail() -> None:
        raise ValueError

    assert watch.timed("sum", sum)([1, 2]) == 3
    with pytest.raises(ValueError):
        watch.timed("failure", fail)()
    assert set(watch.seconds) == {"sum", "failure"} and min(watch.seconds.values()) >= 0


def test_a_watched_copy_is_timed_where_it_calls_itself_and_its_original_is_not() -> None:
    class Thing:
        def __init__(self) -> None:
            self.held = [1]

        def inner(self) -> int:
            return self.held[0]

        def outer(self) -> int:
            return self.inner()

    thing, watch = Thing(), Stopwatch()
    copy = watched(thing, watch, {"inner": "a part"})
    assert copy.outer() == thing.outer() == 1 and watch.calls == {"a part": 1}
    assert isinstance(copy, Thing) and copy.held is thing.held and "a part" in watch.seconds


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_is_watched_whether_it_is_compiled_or_not(compiled: bool) -> None:
    """Also if it was compiled, and asked, before."""
    network, x = torch.nn.Linear(3, 2), torch.ones(5, 3)
    if compiled:
        network.compile(backend="eager")
    plain, call = network(x), network._compiled_call_impl
    watch, samples = Stopwatch(), Counter[str]()
    with watched_denoiser(network, watch, samples):
        assert torch.equal(network(x), plain)
        with torch.no_grad():
            network(x[:2])
    assert samples == {FORWARD: 2, LEARNING: 5, BACKWARD: 5} and watch.calls == {FORWARD: 1, LEARNING: 1}
    assert network._compiled_call_impl is call
    network(x)
    assert samples[LEARNING] == 5


def test_what_warms_up_is_not_watched(arguments: Callable[..., RunConfig]) -> None:
    given = {"overwrite_output_dir": True, "max_train_iterations": 1, "target_kl": 1e9}
    cold, warm = (profile(arguments(**given), warm_up=warm_up) for warm_up in (False, True))
    assert warm.iterations == 1 and warm.samples == cold.samples and warm.calls == cold.calls


def test_every_part_of_a_run_is_found(arguments: Callable[..., RunConfig]) -> None:
    """The UNet is asked as often as the settings say: 2 rollouts an iteration, and in updates reference,
    policy, retain and worst-case states a term."""
    config = arguments(
        overwrite_output_dir=True,
        max_train_iterations=2,
        cooldown_updates=0,
        images_per_iteration=4,
        train_timestep_fraction=1.0,
        gamma=0.5,
        max_step_kl=1e9,
        target_kl=1e9,
    )
    found = profile(config)
    assert found.iterations == 2 and set(found.parts) == set(PARTS)
    steps, branches = config.environment.num_inference_steps, 2
    terms = 2 * (steps - config.update.masked_steps)
    # With a critic, all of the iterations and the last look roll out.
    assert found.calls[FORWARD] == 3 * 2 * steps + terms
    assert found.calls[LEARNING] == found.calls[BACKWARD] == 3 * terms
    learnt = 2 * config.schedule.images_per_iteration + config.update.retain_batch_size
    assert found.samples[LEARNING] == found.samples[BACKWARD] == terms * branches * learnt
    assert 0 < sum(found.parts.values()) <= found.total and 0 < found.overhead < 1
    assert found.operations > 0 and found.peak > 0 and 0 < found.utilisation(*DENOISER) < 2


def test_the_table_adds_up() -> None:
    seconds, calls = (
        {FORWARD: 4.0, LEARNING: 2.0, BACKWARD: 2.0, "critic": 1.0},
        {FORWARD: 32, LEARNING: 8, BACKWARD: 8, "critic": 2},
    )
    found = Profile(2, 10.0, seconds, calls, {FORWARD: 300, LEARNING: 100, BACKWARD: 100}, 10**9, 1e11)
    text = table(found)
    assert (
        "| denoiser, forward | 2.000 | 40.0 % | 16 | 75 % |" in text
        and "| everything else | 0.500 | 10.0 % |  |  |" in text
    )
    assert "| **together** | **5.000** | of which overhead: **20.0 %** |  |  |" in text
    assert re.findall(r"[\d.]+ (?:GFLOP|TFLOP/s|TFLOP|%)", text.splitlines()[-1]) == [
        "1 GFLOP",
        "0.25 TFLOP",
        "0.1 TFLOP/s",
        "62 %",
        "50 %",
    ]


def test_a_unet_costs_what_others_count() -> None:
    """401 GMAC for Stable Diffusion 1.5 at 512 px is the number that model profilers publish."""
    pipe = MODELS["sd15"].build_pipeline(torch.float32, "meta")
    assert forward_operations(Backbone.of(pipe)) / 2e9 == pytest.approx(401, rel=0.01)


@pytest.mark.parametrize("kind", FLOWS)
def test_operations_of_a_transformer_are_those_that_it_does(kind: str, flow_dirs: dict[str, Path]) -> None:
    backbone = Backbone.of(load_base(BaseConfig(str(flow_dirs[kind]), resolution=16)))
    x, told = torch.zeros(1, *backbone.latent_shape), backbone.encode_no_prompt()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.output(x, torch.tensor(500.0), told, 1.0)
    assert forward_operations(backbone) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr("benchmarks.profile.now", lambda: next(clock))
    assert matrix_peak(torch.device("cpu"), torch.float32, repeats=3) == 2 * 1024**3 / 2.0


def test_operations_are_counted_of_latents_that_are_not_square(tmp_path: Path) -> None:
    counted = {}
    for size in (8, (8, 16), (16, 8)):
        save_sd1(tmp_path / str(size), size)
        counted[size] = forward_operations(Backbone.of(load_pipeline(tmp_path / str(size))))
    assert counted[8, 16] == counted[16, 8] > 1.5 * counted[8]
