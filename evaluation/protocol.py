"""Base and adapter side by side on one pipeline: drawn, judged, summarized."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

import canvas
from evaluation.examination import Examination, default_seeds
from evaluation.generate import adapter_at, draw, evaluation_mode
from evaluation.grid import Pair
from evaluation.metrics import HEADLINE, Verdict
from evaluation.shards import SHARD_SIZE, Job, Seen, Side, split
from networks.versions import versions

if TYPE_CHECKING:
    from evaluation.measures import Measures

BUNDLED_PIPELINE, BUNDLED_JUDGE = "bundled canvas", "bundled canvas judge"
CHANGED = "changed"
"""Name of the measurement that says in which images the adapter changed any pixel."""


@dataclass
class Evaluation:
    """What was found: `results` goes to results.json as it is, `pairs` to the before/after grid."""

    results: dict[str, Any]
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """Where images and verdicts are kept, one side a directory.

    Attributes:
        base: the base's side; it may serve several adapters.
        sides: by weight of the adapter, its side.
    """

    base: Side
    sides: Mapping[float, Side]

    def __getitem__(self, scale: float) -> Side:
        return self.base if scale == 0 else self.sides[scale]


def evaluate(
    pipe: DiffusionPipeline,
    examination: Examination,
    seeds: Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 64,
    showcase: int = 8,
    progress: bool = True,
    scales: Sequence[float] = (1.0,),
    measures: Measures | None = None,
    store: Store | None = None,
    processes: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Draw and judge every prompt with the adapter disabled and at each weight, on one pipeline that carries it.

    Images come and go shard by shard: one shard of the base's and one of the adapter's are in memory, what was observed of the others, and the few of
    `pairs`.

    Args:
        pipe: a pipeline with an adapter; its sampler and modes are as before afterwards.
        seeds: one image a prompt and seed. None is the examination's own, else those of `default_seeds`.
        num_inference_steps: None is the examination's own.
        guidance_scale: None is the examination's own, else the pipeline's default.
        showcase: how many forget prompts, and how many retain prompts, `pairs` holds (first seed).
        scales: weights of the adapter; 0 is the base and is not drawn again.
        measures: what is measured beside the verdicts.
        store: keeps images and verdicts, so that what is interrupted goes on; None keeps none.
        processes: which of how many processes this is; several need a store that all of them see. Shard k is the task of process k modulo their number.
        wait: returns once all processes have called it.

    Returns:
        None in every process but the first. `results` has `base` and `adapter` (at the weight nearest to 1; figures in percent, within each `ci95`
        `{figure: [low, high]}`, `images` of each figure, `per_class`, `measures`), `scales` (the same for every weight), `seeds`, `judge`, `protocol`,
        `targets`, `images_per_side`, `changed_images` (percent of images in which the adapter changed any pixel), settings, versions, seconds.

    Raises:
        ValueError: several processes and no store.
    """
    if processes[1] > 1 and store is None:
        raise ValueError("several processes need a store")
    started = time.perf_counter()
    steps = num_inference_steps or examination.num_inference_steps
    guidance = examination.guidance_scale if guidance_scale is None else guidance_scale
    jobs = list_jobs(examination, seeds)
    shards = split(jobs, SHARD_SIZE if store else batch_size)
    shown = [(i, next(seed for prompt, seed in jobs if prompt == i)) for i in examination.showcase(showcase)]
    weights = sorted({float(scale) for scale in scales} - {0.0})
    identity = _identity(examination, measures) if store else ""

    def draw_shard(scale: float, shard: Sequence[Job]) -> list[Image.Image]:
        with adapter_at(pipe, scale):
            return draw(pipe, [(examination.prompts[i], seed) for i, seed in shard], steps, guidance, batch_size)

    def images_of(scale: float, k: int) -> list[Image.Image]:
        draw_it = partial(draw_shard, scale, shards[k])
        return store[scale].images(k, shards[k], draw_it) if store else draw_it()

    def known(scale: float, k: int) -> Seen | None:
        if store is None or not store.base.is_whole(k, shards[k]) or not store[scale].is_whole(k, shards[k]):
            return None
        return store[scale].read_seen(k, store[scale].key(k, identity, "" if scale == 0 else store.base.key(k)))

    def observe_all(mine: Sequence[int], label: str) -> tuple[dict[float, list[Seen]], dict[float, dict[Job, Image.Image]]]:
        """What is seen of every shard of `mine`, by weight, and the images to show that passed by."""
        found: dict[float, list[Seen]] = {scale: [] for scale in (0.0, *weights)}
        pictures: dict[float, dict[Job, Image.Image]] = {scale: {} for scale in found}
        total = len(found) * sum(len(shards[k]) for k in mine)
        with tqdm(total=total, desc=label, disable=not progress, unit="image", leave=False) as bar:
            for k in mine:
                base: list[Image.Image] | None = None
                for scale in found:
                    seen = known(scale, k)
                    if seen is None:
                        base = base or images_of(0.0, k)
                        images = base if scale == 0 else images_of(scale, k)
                        seen = _observe(examination, measures, images, shards[k], None if scale == 0 else base)
                        pictures[scale] |= {job: image for job, image in zip(shards[k], images, strict=True) if job in shown}
                        if store:
                            store[scale].write_seen(k, store[scale].key(k, identity, "" if scale == 0 else store.base.key(k)), seen)
                    found[scale].append(seen)
                    bar.update(len(shards[k]))
        return found, pictures

    with evaluation_mode(pipe):
        if processes[1] > 1:
            observe_all(range(processes[0], len(shards), processes[1]), f"evaluating, process {processes[0] + 1} of {processes[1]}")
            wait()
            if processes[0]:
                return None
        found, pictures = observe_all(range(len(shards)), "evaluating")
    ids, base_values = [i for i, _ in jobs], _values(found[0.0])
    sides = {scale: _side(examination, found[scale], ids, measures, None if scale == 0 else base_values) for scale in found}
    chosen = min(sides, key=lambda scale: (scale == 0 and bool(weights), abs(scale - 1)))
    results = {
        "base": sides[0.0],
        "adapter": sides[chosen],
        "lora_scale": chosen,
        "scales": [{"scale": scale, **sides[scale]} for scale in sorted({float(scale) for scale in scales})] if len(scales) > 1 else None,
        "protocol": examination.protocol,
        "seeds": sorted({seed for _, seed in jobs}),
        "judge": examination.name,
        "measured_by": measures.names() if measures else None,
        "images_per_side": len(jobs),
        "prompts": {"forget": sum(examination.forget), "retain": len(examination.forget) - sum(examination.forget)},
        "changed_images": sides[chosen]["changed_images"],
        "num_inference_steps": steps,
        "guidance_scale": default_guidance(pipe) if guidance is None else guidance,
        "versions": versions(),
        "evaluation_seconds": round(time.perf_counter() - started, 1),
        "targets": {domain: sorted(names) for domain, names in examination.targets.items()},
    }
    results = {name: value for name, value in results.items() if value not in (None, {})}

    def picture(scale: float, job: Job) -> Image.Image:
        return pictures[scale][job] if job in pictures[scale] or store is None else store[scale].image(job)

    pairs = [Pair(examination.prompts[i], picture(0.0, (i, seed)), picture(chosen, (i, seed)), examination.forget[i]) for i, seed in shown]
    return Evaluation(results, pairs)


def list_jobs(examination: Examination, seeds: Sequence[int] | None = None) -> list[Job]:
    """The images to draw, seed after seed; `seeds` as in `evaluate`."""
    given = examination.seeds if seeds is None else seeds
    of_prompts = default_seeds(examination.forget) if given is None else [list(given)] * len(examination.cells)
    ordered = dict.fromkeys(seed for of_prompt in sorted(of_prompts, key=len, reverse=True) for seed in of_prompt)
    return [(i, seed) for seed in ordered for i, of_prompt in enumerate(of_prompts) if seed in of_prompt]


def public_name(name_or_path: str | Path) -> str:
    """How results name a model: the bundled ones as such, a local directory by its last part, a Hub id as it is."""
    path = Path(name_or_path)
    for bundled, name in ((canvas.PIPELINE, BUNDLED_PIPELINE), (canvas.JUDGE, BUNDLED_JUDGE)):
        if str(name_or_path) == name or path.resolve() == bundled.resolve():
            return name
    return path.resolve().name if path.exists() or path.is_absolute() else str(name_or_path)


def default_guidance(pipe: DiffusionPipeline) -> float | None:
    """The guidance scale the pipeline uses when none is given."""
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    return None if parameter is None else parameter.default


def table(results: Mapping[str, Any]) -> str:
    """Base against adapter as text, or base against every weight of it, with 95 % intervals and the judge's name."""
    names = [*HEADLINE, *(["NRA"] if results["base"].get("NRA") is not None else [])]
    rows = {"base": results["base"]}
    if results.get("scales"):
        rows |= {f"weight {side['scale']:g}": side for side in results["scales"] if side["scale"]}
    else:
        rows["adapter"] = results["adapter"]
    lines = [" ".join([f"{'':12}", *(f"{name:>22}" for name in names)]) + "   (percent)"]
    for label, side in rows.items():
        lines.append(" ".join([f"{label:12}", *(f"{_cell(side, name):>22}" for name in names)]))
    for name, found in results["adapter"].get("measures", {}).items():
        lines.append(f"{name}: {found['mean']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]")
    images = results["adapter"]["images"]["UA"]
    return "\n".join(
        [*lines, f"judge: {results['judge']}; {results['images_per_side']} images a side, {images} of the concept; in brackets 95 % intervals"]
    )


def grid_title(results: Mapping[str, Any]) -> str:
    """Headline and figures for the before/after picture, with the judge's name."""
    concept = results["concept"]
    erased = concept if isinstance(concept, str) else ", ".join(concept)
    base, adapter = results["base"], results["adapter"]
    figures = [f"{name} {base[name]:.1f} → {adapter[name]:.1f}" for name in HEADLINE if base.get(name) is not None and adapter.get(name) is not None]
    return f"Erased: {erased}\n{' · '.join(figures)} (percent, base → adapter; judge: {results['judge']})"


def _identity(examination: Examination, measures: Measures | None) -> str:
    return f"{examination.identity()}\n{measures.identity() if measures else ''}"


def _observe(
    examination: Examination, measures: Measures | None, images: list[Image.Image], shard: Sequence[Job], base: list[Image.Image] | None
) -> Seen:
    ids = [i for i, _ in shard]
    values = measures.observe(images, [examination.prompts[i] for i in ids], base) if measures else {}
    if base is not None:
        values[CHANGED] = np.array([before.tobytes() != after.tobytes() for before, after in zip(base, images, strict=True)], dtype=np.uint8)
    return Seen([dict(verdict) for verdict in examination.examine(images, ids)], values)


def _values(found: Sequence[Seen]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([seen.values[name] for seen in found]) for name in found[0].values}


def _side(
    examination: Examination, found: Sequence[Seen], ids: Sequence[int], measures: Measures | None, base: Mapping[str, np.ndarray] | None
) -> dict[str, Any]:
    verdicts, values = [verdict for seen in found for verdict in seen.verdicts], _values(found)
    side = _figures(examination, verdicts, ids)
    for name, kept in examination.without.items():
        rows = [row for row, i in enumerate(ids) if i in set(kept)]
        side[name] = _figures(examination, [verdicts[row] for row in rows], [ids[row] for row in rows])
    classes = examination.per_class(verdicts, ids)
    side["per_class"] = {domain: {name: _rounded(value) for name, value in of_domain.items()} for domain, of_domain in classes.items()}
    side["changed_images"] = _rounded(100 * float(np.mean(values[CHANGED]))) if CHANGED in values else 0.0
    if measures:
        measured = measures.summarize(values, base and dict(base), ids, examination.forget)
        side["measures"] = {
            name: {"mean": round(value["mean"], 4), "ci95": [round(bound, 4) for bound in value["ci95"]]} for name, value in measured.items()
        }
    return side


def _figures(examination: Examination, verdicts: Sequence[Verdict], ids: Sequence[int]) -> dict[str, Any]:
    scores = examination.scores(verdicts, ids)
    intervals = {name: of.interval() for name, of in scores.items()}
    return {
        **{name: _rounded(of.percent()) for name, of in scores.items()},
        "ci95": {name: None if bounds is None else [_rounded(bound) for bound in bounds] for name, bounds in intervals.items()},
        "images": {name: of.images for name, of in scores.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _cell(side: Mapping[str, Any], name: str) -> str:
    if side.get(name) is None:
        return "-"
    low, high = side["ci95"][name]
    return f"{side[name]:.2f} [{low:.1f}, {high:.1f}]"
