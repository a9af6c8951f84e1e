"""Where the time of an iteration goes: `python -m benchmarks.profile -- ARGUMENTS OF THE TRAINING SCRIPT`.

Trains a few iterations, by default of "Van Gogh style" on the bundled canvas, with a watch on the parts;
`--model` has a base of full size with random weights in its place. Every second counts once, in the innermost
part that has a name. What is not the denoiser's forward and backward passes is overhead. The denoiser's own
operations in a second stand beside what a product of two large matrices reaches on the same device in the
same run. What gradient checkpointing does twice counts once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.jobs import split_arguments
from benchmarks.loop import CREDIT, CRITIC, learn
from benchmarks.memory.models import MODELS, saved, short_run
from benchmarks.report import bold, markdown
from common.errors import friendly_errors
from common.flags import flag, parse
from pipelines.backbone import Backbone
from pipelines.memory import DTYPES
from pipelines.meter import samples_of
from training.baseline import measure_base
from training.config import RunConfig
from training.config import parse_config as parse_run
from training.run_state import begin
from training.setup import Run, prepare

T = TypeVar("T")
FORWARD, LEARNING, BACKWARD = "denoiser, forward", "denoiser, forward with a graph", "denoiser, backward"
DENOISER = (FORWARD, LEARNING, BACKWARD)
ROLLOUT, IMAGES, PREDICTOR = "rollout, the rest", "VAE and teacher", "reward predictor"
UPDATE, OPTIMIZER = "update, the rest", "optimizer"
PARTS = (*DENOISER, ROLLOUT, IMAGES, PREDICTOR, CREDIT, UPDATE, OPTIMIZER, CRITIC)


# --- watching ---------------------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the seconds spent in parts, by name; a part within another counts there alone.

    Attributes:
        seconds: by name.
        calls: how often each part was entered.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._running: list[tuple[str, float]] = []
        self._within: list[float] = []

    def start(self, name: str) -> None:
        """Enter a part."""
        self._running.append((name, now()))
        self._within.append(0.0)

    def stop(self) -> None:
        """Leave the part that was entered last."""
        name, started = self._running.pop()
        taken = now() - started
        self.seconds[name] += taken - self._within.pop()
        self.calls[name] += 1
        if self._within:
            self._within[-1] += taken

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within is a part, also if it fails."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The same function, as a part."""

        def within(*given: Any, **named: Any) -> T:
            with self.part(name):
                return function(*given, **named)

        return within

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.calls.clear()


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Watch(Protocol):
    """Whatever looks on while a function is called."""

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """The same function, as a part."""


def watched(thing: T, watch: Watch, parts: Mapping[str, str]) -> T:
    """A copy of an object that shares what it holds, with methods that are parts, also where it calls itself.

    Args:
        parts: the part that each method is, by the method's name.
    """
    kind = type(thing)
    timed = {method: watch.timed(part, getattr(kind, method)) for method, part in parts.items()}
    twin = object.__new__(type(kind.__name__, (kind,), timed))
    twin.__dict__.update(vars(thing))
    return twin


def watched_run(run: Run, watch: Watch, environment: Mapping[str, str], policy: Mapping[str, str]) -> Run:
    """A run that is not begun, with methods of its environment and its policy under the watch."""
    env = watched(run.env, watch, environment)
    env.policy = watched(env.policy, watch, policy)
    return replace(run, env=env)


@contextmanager
def watched_denoiser(denoiser: nn.Module, watch: Stopwatch, samples: Counter[str]) -> Iterator[None]:
    """Within, the network's forward passes are parts, and the rows that it is given count.

    Hooks would be compiled with a network that is compiled; so its call is wrapped from without.
    """
    compiled = denoiser._compiled_call_impl
    call = compiled or denoiser._call_impl

    def watched_call(*args: Any, **kwargs: Any) -> Any:
        learns, rows = torch.is_grad_enabled(), samples_of(args, kwargs)
        samples.update({LEARNING: rows, BACKWARD: rows} if learns else {FORWARD: rows})
        with watch.part(LEARNING if learns else FORWARD):
            return call(*args, **kwargs)

    denoiser._compiled_call_impl = watched_call
    try:
        yield
    finally:
        denoiser._compiled_call_impl = compiled


@contextmanager
def watched_optimizer(optimizer: torch.optim.Optimizer, watch: Stopwatch) -> Iterator[None]:
    """Within, its steps are a part."""
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: watch.start(OPTIMIZER)),
        optimizer.register_step_post_hook(lambda *_: watch.stop()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- operations -------------------------------------------------------------------------------------------


def forward_operations(backbone: Backbone) -> int:
    """Floating-point operations of a forward pass of one sample of the size that is drawn, counted without
    computing anything; a multiplication and its addition are two.

    Args:
        backbone: of whose network a copy without weights is made.
    """
    denoiser, meta = backbone.denoiser, torch.device("meta")
    alone = copy(backbone)
    alone.pipe = copy(backbone.pipe)
    with meta:
        without_weights = type(denoiser).from_config(denoiser.config).requires_grad_(False)
        x, timestep = torch.zeros(1, *backbone.latent_shape), torch.ones(())
    setattr(alone.pipe, backbone.component, without_weights)
    told = backbone.encode_no_prompt().to(meta)
    with FlopCounterMode(display=False) as counter:
        alone.output(x, timestep, told, 1.0)
    return counter.get_total_flops()


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of the fastest of `repeats` products of two large square matrices: what can be
    had of this device at best."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(repeats):
        started = now()
        a @ b
        fastest = min(fastest, now() - started)
    return 2 * size**3 / fastest


# --- the profile ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Some iterations.

    Attributes:
        total, parts: seconds, in all and by part.
        calls: how often each part was entered.
        samples: rows that went through the denoiser, by its part; both branches of guidance count.
        operations: of the denoiser for one of them; through a frozen one a backward pass costs what a forward
            pass does.
        peak: operations a second of a large matrix product in the denoiser's precision.
    """

    iterations: int
    total: float
    parts: dict[str, float]
    calls: dict[str, int]
    samples: dict[str, int]
    operations: int
    peak: float

    @property
    def overhead(self) -> float:
        """Fraction of the time that is not the denoiser's."""
        return 1 - sum(self.parts[part] for part in DENOISER) / self.total

    def utilisation(self, *parts: str) -> float:
        """Fraction of the peak that the denoiser reaches in some of its parts."""
        done = self.operations * sum(self.samples[part] for part in parts)
        return done / sum(self.parts[part] for part in parts) / self.peak


def profile(config: RunConfig, *, warm_up: bool = False) -> Profile:
    """Train with the watch on, from after the base has been measured to the last update.

    Args:
        warm_up: whether as many iterations go before, unwatched: whatever is compiled, loaded or chosen at
            first use is there then.
    """
    run, watch, samples = prepare(config), Stopwatch(), Counter[str]()
    operations = forward_operations(run.env.backbone)
    peak = matrix_peak(run.accelerator.device, DTYPES[config.memory.precision])
    environment = {"collect": ROLLOUT, "finish": IMAGES, "predict": PREDICTOR}
    run = watched_run(run, watch, environment, {"update": UPDATE})
    run = replace(run, accelerator=watched(run.accelerator, watch, {"backward": BACKWARD}))
    base = measure_base(run)
    if warm_up:
        fresh = run.policy.state()
        learn(run, base, begin(run, base, 0.0))
        run.policy.load_state(fresh)
    watch.clear()
    started = now()
    state = begin(run, base, 0.0)
    with watched_denoiser(run.denoiser, watch, samples), watched_optimizer(run.optimizer.optimizer, watch):
        learn(run, base, state, stage=watch.part)
    return Profile(
        state.progress.iteration,
        now() - started,
        dict(watch.seconds),
        dict(watch.calls),
        dict(samples),
        operations,
        peak,
    )


def table(found: Profile) -> str:
    """Markdown: a row for each part, the longest first, and what is left; then what the denoiser reaches of
    the peak."""
    rows = []
    parts = sorted(found.parts.items(), key=lambda row: -row[1])
    for name, seconds in [*parts, ("everything else", found.total - sum(found.parts.values()))]:
        cells = [name, f"{seconds / found.iterations:.3f}", f"{100 * seconds / found.total:.1f} %"]
        calls = f"{found.calls[name] / found.iterations:g}" if name in found.calls else ""
        reached = f"{100 * found.utilisation(name):.0f} %" if name in DENOISER else ""
        rows.append([*cells, calls, reached])
    overhead = f"of which overhead: {bold(f'{100 * found.overhead:.1f} %')}"
    rows.append([bold("together"), bold(f"{found.total / found.iterations:.3f}"), overhead, "", ""])
    done = found.operations * sum(found.samples.values()) / found.iterations
    text = (
        f"The denoiser: {found.operations / 1e9:.3g} GFLOP a sample forward, {done / 1e12:.3g} TFLOP an "
        f"iteration. A large matrix product reaches {found.peak / 1e12:.3g} TFLOP/s; the "
        f"denoiser "
        f"{100 * found.utilisation(*DENOISER):.0f} % of it, in updates "
        f"{100 * found.utilisation(LEARNING, BACKWARD):.0f} %."
    )
    header = ["part", "seconds an iteration", "share", "calls an iteration", "of the peak"]
    return f"{markdown(header, rows)}\n\n{text}"


@dataclass(frozen=True)
class ProfileConfig:
    """Profile."""

    iterations: int = flag(4, at_least=1, help="Number of iterations that are watched.")
    model: str | None = flag(
        None,
        choices=tuple(MODELS),
        help="A base of full size with random weights. Default: the bundled one.",
    )
    images: int = flag(
        32, at_least=1, help="Of --model: trajectories of an iteration, and rollouts before the first."
    )
    bases: Path = flag(
        Path("runs/memory"), help="Where --model is written, once; `benchmarks.memory` shares it."
    )


def run_flags(config: ProfileConfig, output_dir: Path) -> list[str]:
    """Flags of the training script for a run that does nothing but iterate."""
    flags = ["--concept", "Van Gogh style", "--evaluation_seeds"]
    if config.model:
        flags = short_run(saved(config.model, config.bases), config.images)
    given = {
        "max_train_iterations": config.iterations,
        "cooldown_updates": 0,
        "validation_steps": 0,
        "checkpointing_steps": 0,
        "report_to": "none",
        "target_unlearning_accuracy": 1.1,
        "output_dir": output_dir,
    }
    words = (word for name, value in given.items() for word in (f"--{name}", str(value)))
    return [*flags, "--no-train_text_encoder", *words]


def main(arguments: Sequence[str] | None = None) -> None:
    own, extra = split_arguments(arguments)
    config = parse(ProfileConfig, own, __doc__, prog="python -m benchmarks.profile")
    with TemporaryDirectory() as directory:
        print(table(profile(parse_run([*run_flags(config, Path(directory) / "run"), *extra]))))


if __name__ == "__main__":
    with friendly_errors():
        main()
