"""The runs of a comparison: erased, then evaluated, in a directory each. What has its results is not run
again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from benchmarks.compare.methods import CLOSED_FORMS, command
from benchmarks.compare.records import Records
from benchmarks.jobs import Job, in_parallel, run_job, slug
from common.schema import Length
from hub.adapter import find_adapter
from hub.results import RESULTS_NAME, Percent, Training, check

SEEDS_APART = 1000
"""Between one draw of the judged images and the next."""

RECORDED = (
    *("method", "concept", "seed", "adapter_mb", "training", "targets", "base", "adapter"),
    *("seeds", "images_per_side", "num_inference_steps", "guidance_scale"),
)


class Erased(TypedDict):
    """What a comparison needs of the results of a method."""

    training: Training


class Headline(TypedDict):
    """And of a side that was judged."""

    UA: Percent


class Compared(TypedDict):
    """And of an evaluation."""

    base: Headline
    adapter: Headline
    targets: Annotated[dict[str, list[str]], Length(1, 99)]


@dataclass(frozen=True, kw_only=True)
class World:
    """Flags that name a base and what belongs to it; none for the bundled one.

    Attributes:
        erase: for the programs that erase, from the concept: base, CLIP, reward predictor, prompts.
        settings: from the method, further flags of its program: what was chosen for this base.
        evaluate: for `python -m evaluation`: base, CLIP, judge, seeds.
        probe: for `python -m evaluation.probes`, from the erased concept: base, CLIP, judge, and what else it
            is given.
        base_images: from the concept, where an evaluation keeps the base's images; concepts that are judged
            on the same prompts share a folder.
        records: what is known of runs, which are not run again.
    """

    erase: Callable[[str], Sequence[str]] = lambda concept: ()
    settings: Callable[[str], Sequence[str]] = lambda method: ()
    evaluate: Sequence[str] = ()
    probe: Callable[[str], Sequence[str]] = lambda concept: ()
    base_images: Callable[[str], str] = lambda concept: "base"
    records: Records | None = None


@dataclass(frozen=True)
class Erasure:
    """A method, what it erases, and with which seed: of its training, or for a closed form, which has none,
    of the images that are judged."""

    method: str
    concept: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}-{slug(self.concept)}-{self.seed}"

    def directory(self, output_dir: Path) -> Path:
        """Where its adapter and results are."""
        return output_dir / "runs" / self.name

    @property
    def judged_from(self) -> int:
        """What is added to the seeds of the judged images."""
        return SEEDS_APART * self.seed if self.method in CLOSED_FORMS else 0


def run_all(
    erasures: Sequence[Erasure], output_dir: Path, at_a_time: int, world: World
) -> list[dict[str, Any]]:
    """For every run the results of its evaluation, what its training cost, method, concept, seed and the size
    of the adapter's file.

    Raises:
        RuntimeError: a run failed; the message names its log.
        ValueError: a run's results lack what is compared.
    """

    def found(erasure: Erasure) -> dict[str, Any]:
        if world.records is None:
            return run(erasure, output_dir, world)
        kept = world.records.of(erasure.name, lambda: recorded(run(erasure, output_dir, world)))
        check(kept, Compared, f"{world.records.path(erasure.name)}")
        return kept

    return in_parallel(found, erasures, at_a_time, "erasing and judging")


def recorded(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run whose adapter is not: what tables show, and how it was judged."""
    return {key: found[key] for key in RECORDED if key in found}


def run(erasure: Erasure, output_dir: Path, world: World) -> dict[str, Any]:
    """The same of one. The base's images are drawn once for all concepts that share them."""
    path = erasure.directory(output_dir)
    flags = [*world.erase(erasure.concept), *world.settings(erasure.method)]
    given = command(erasure.method, erasure.concept, erasure.seed, str(path), flags)
    cost = run_job(Job(given, path / RESULTS_NAME, path.with_suffix(".log")))
    check(cost, Erased, f"{path / RESULTS_NAME}")
    judged, images = path / "evaluation", output_dir / world.base_images(erasure.concept)
    if erasure.judged_from:
        images = images.with_name(f"{images.name}-{erasure.judged_from}")
    given = ["-m", "evaluation", "--adapter", str(path), "--base_images", str(images)]
    given += ["--output_dir", str(judged), "--seed_offset", str(erasure.judged_from), *world.evaluate]
    found = run_job(Job(given, judged / RESULTS_NAME, path.with_suffix(".evaluation.log")))
    check(found, Compared, f"{judged / RESULTS_NAME}")
    known = {
        "method": erasure.method,
        "concept": erasure.concept,
        "seed": erasure.seed,
        "adapter_mb": find_adapter(path).stat().st_size / 1e6,
        "training": cost["training"],
    }
    return found | known
