"""The stages, in the order of what matters most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.cards import groups, under_caps
from benchmarks.gpu.checks import demo, suite
from benchmarks.gpu.peer import side_by_side
from benchmarks.gpu.results import Results
from benchmarks.gpu.speed import batches, compiled
from benchmarks.gpu.update import kernels
from benchmarks.gpu.work import Measurement, Work


@dataclass(frozen=True)
class Stage:
    """A process of its own.

    Attributes:
        bound: seconds after which it is ended.
        measurements: in their order; cheap to list, for each is made only when it is asked for its figures.
    """

    bound: float
    measurements: Callable[[Work], Iterator[Measurement]]

    def pending(self, name: str, work: Work, results: Results) -> list[Measurement]:
        """What is not in the results."""
        return [one for one in self.measurements(work) if not results.has(name, one.settings)]


STAGES = {
    "demo": Stage(110, demo),
    "tests": Stage(70, suite),
    "speed": Stage(150, batches),
    **{name: Stage(120, partial(under_caps, trials=trials)) for name, trials in groups().items()},
    "peer": Stage(90, side_by_side),
    "update": Stage(60, kernels),
    "compile": Stage(150, partial(compiled, stage="compile")),
    "graphs": Stage(150, partial(compiled, stage="graphs")),
}
"""By name. Compilation comes last, since it can take what is left of a call."""
