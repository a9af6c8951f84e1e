"""What a stage is given, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.scale import FULL, TINY, Scale
from benchmarks.memory.models import saved
from common.flags import flag


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    """What is measured, and where it goes."""

    output_dir: Path = flag(
        Path("runs/gpu"), help="Where results.jsonl, log.txt and update.json.gz are written: what comes home."
    )
    scratch: Path | None = flag(
        None,
        help="Where bases with random weights (10 GB) and runs are kept between calls. Default: a temporary "
        "directory.",
    )
    label: str = flag(
        "", help="What was changed since the last call: what has been measured is measured again under it."
    )
    tiny: bool = flag(False, help="Rehearse: everything at a size that a CPU does in minutes.")


@dataclass(frozen=True)
class Work:
    """What a stage is given.

    Attributes:
        output_dir: for what comes home.
        scratch: for what does not.
    """

    output_dir: Path
    scratch: Path
    scale: Scale

    @classmethod
    def of(cls, config: WorkConfig, scratch: Path) -> Work:
        return cls(config.output_dir, scratch, TINY if config.tiny else FULL)

    @property
    def bases(self) -> Path:
        """The directory of the bases."""
        return self.scratch / "bases"

    def base(self, name: str) -> Path:
        """The folder of a base with random weights, written if it is not there."""
        return saved(name, self.bases, self.scale.models, device())

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Within: a directory that is not there yet, for a run that nobody looks at afterwards."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.scratch) as name:
            yield Path(name) / "run"


class Measurement(NamedTuple):
    """One line of the results.

    Attributes:
        settings: what it depends on, as JSON has it; they name it within its stage.
        measure: makes the figures, as JSON has them.
    """

    settings: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


def device() -> str:
    """Where tensors lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def card() -> str:
    """The name of the GPU, or that there is none."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
