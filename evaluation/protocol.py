"""Draw, judge and summarise base and adapter side by side, on one pipeline."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from common.versions import versions
from evaluation.examination import Examination
from evaluation.grid import Pair
from evaluation.metrics import HEADLINE, METRICS, Verdict
from evaluation.observation import BASE, CHANGED, COUNT, Observer, Store
from evaluation.shards import Job, Seen
from hub.results import listed
from pipelines.backbone import Backbone
from pipelines.generate import evaluation_mode

if TYPE_CHECKING:
    from evaluation.measures import Measures

Observed = tuple[dict[float, list[Seen]], dict[float, dict[Job, Image.Image]]]
"""What a process has seen of its shards, and the images to show that it has drawn, both by weight of the
adapter."""


MOST_SEEDS = 200
"""How many seeds results list; of more, which a file of prompts has brought, they have the number."""


@dataclass
class Evaluation:
    """The findings: `results` goes to results.json as it is, `pairs` to the before/after grid."""

    results: dict[str, Any]
    pairs: list[Pair] = field(default_factory=list)


def evaluate(
    pipe: DiffusionPipeline,
    examination: Examination,
    seeds: Sequence[int] | None = None,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    showcase: int = 8,
    progress: bool = True,
    scales: Sequence[float] = (1.0,),
    measures: Measures | None = None,
    store: Store | None = None,
    processes: tuple[int, int] = (0, 1),
    gather: Callable[[list[Observed]], list[Observed]] = list,
) -> Evaluation | None:
    """Draw and judge every prompt with the adapter disabled and at each weight, on one pipeline that has it.

    Memory holds one shard of the base's images, one of the adapter's, the observations of all others, and the
    few images of `pairs`.

    Args:
        pipe: a pipeline with an adapter; its sampler and modes are restored afterwards.
        seeds: one image for each prompt and seed. None is the examination's own.
        num_inference_steps: None is the examination's own.
        guidance_scale: None is each prompt's own, else the pipeline's default.
        batch_size: images drawn at a time; None goes by the size of the latents.
        showcase: number of forget prompts, and of retain prompts, in `pairs` (first seed).
        scales: weights of the adapter; 0 is the base and is not drawn again.
        measures: what is measured apart from the verdicts.
        store: keeps images and verdicts, so that an interrupted evaluation goes on; None keeps none.
        processes: index of this process, and their number. Process k modulo their number draws shard k.
        gather: every process's list -> those of all in one, in the order of the processes; each process
            calls it once.

    Returns:
        None in every process but the first. `results` has `base` and `adapter` (at the weight nearest to 1;
        metrics in percent, each with `ci95` `{metric: [low, high]}`, `images` of each metric, `per_class`,
        `measures`, `detections`), `scales` (the same for every weight), `seeds`, `judge`, `protocol`,
        `targets`, `images_per_side`, `changed_images` (percent of images in which the adapter changed any
        pixel), `shown` (which images of a store `pairs` holds), settings, versions, seconds. `guidance_scale`
        is a list where prompts differ in it.
    """
    started, (process, count) = time.perf_counter(), processes
    steps = num_inference_steps or examination.num_inference_steps
    guidance = guidance_by_prompt(pipe, examination, guidance_scale)
    jobs = list_jobs(examination, seeds)
    shown = [(i, next(seed for prompt, seed in jobs if prompt == i)) for i in examination.showcase(showcase)]
    share = -(-len(jobs) // count)
    batch_size = batch_size or Backbone.of(pipe).usual_batch_size
    observer = Observer(
        pipe,
        examination,
        jobs,
        scales=scales,
        num_inference_steps=steps,
        guidance=guidance,
        batch_size=min(batch_size, share),
        measures=measures,
        store=store,
        shown=shown,
    )
    shards = range(len(observer.shards))
    with evaluation_mode(pipe):
        label = "evaluating" if count == 1 else f"evaluating, process {process + 1} of {count}"
        seen_here = observer.observe(shards[process::count], label if progress else None)
    observed = gather([(seen_here, observer.pictures)])
    if process:
        return None
    found = {scale: [observed[k % count][0][scale][k // count] for k in shards] for scale in observer.scales}
    for _, pictures in observed:
        observer.keep(pictures)
    ids, base_values = [i for i, _ in jobs], _values(found[BASE])
    sides = {
        scale: _side(examination, seen, ids, measures, None if scale == BASE else base_values)
        for scale, seen in found.items()
    }
    chosen = min(sides, key=lambda scale: (scale == BASE and len(sides) > 1, abs(scale - 1)))
    results = {
        "base": sides[BASE],
        "adapter": sides[chosen],
        "lora_scale": chosen,
        "scales": [{"scale": scale, **sides[scale]} for scale in sorted({float(scale) for scale in scales})]
        if len(scales) > 1
        else None,
        "protocol": examination.protocol,
        "seeds": seeds_shown({seed for _, seed in jobs}),
        "judge": examination.name,
        "measured_by": measures.names() if measures else None,
        "images_per_side": len(jobs),
        "prompts": {
            "forget": sum(examination.forget),
            "retain": len(examination.forget) - sum(examination.forget),
        },
        "changed_images": sides[chosen]["changed_images"],
        "num_inference_steps": steps,
        "guidance_scale": guidance[0]
        if len(set(guidance)) == 1
        else sorted({scale for scale in guidance if scale is not None}),
        "versions": versions(),
        "evaluation_seconds": round(time.perf_counter() - started, 1),
        "shown": store
        and [
            {"prompt": examination.prompts[i], "index": i, "seed": seed, "forget": examination.forget[i]}
            for i, seed in shown
        ],
        "targets": {domain: sorted(names) for domain, names in examination.targets.items()},
    }
    results = {name: value for name, value in results.items() if value not in (None, {})}

    pairs = [
        Pair(
            examination.prompts[job[0]],
            observer.picture(BASE, job),
            observer.picture(chosen, job),
            examination.forget[job[0]],
        )
        for job in shown
    ]
    return Evaluation(results, pairs)


def list_jobs(examination: Examination, seeds: Sequence[int] | None = None) -> list[Job]:
    """The images to draw, seed after seed; `seeds` as in `evaluate`."""
    of_prompts = examination.seeds_by_prompt() if seeds is None else [list(seeds)] * len(examination.cells)
    ordered = dict.fromkeys(
        seed for of_prompt in sorted(of_prompts, key=len, reverse=True) for seed in of_prompt
    )
    place = {seed: at for at, seed in enumerate(ordered)}
    jobs = [(i, seed) for i, of_prompt in enumerate(of_prompts) for seed in of_prompt]
    return [(i, seed + examination.seed_offset) for i, seed in sorted(jobs, key=lambda job: place[job[1]])]


def guidance_by_prompt(
    pipe: DiffusionPipeline, examination: Examination, given: float | None = None
) -> list[float | None]:
    """For each prompt, the guidance scale of its images: the one that is given, else the prompt's own, else
    the pipeline's."""
    chosen = examination.guidance_by_prompt() if given is None else [given] * len(examination.cells)
    return [default_guidance(pipe) if scale is None else scale for scale in chosen]


def seeds_shown(seeds: Collection[int]) -> list[int] | list[str]:
    """The seeds as results show them."""
    return sorted(seeds) if len(seeds) <= MOST_SEEDS else [f"{len(seeds)} different ones"]


def default_guidance(pipe: DiffusionPipeline) -> float | None:
    """The guidance scale the pipeline uses when none is given."""
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    return None if parameter is None else parameter.default


def table(results: Mapping[str, Any]) -> str:
    """Base against adapter as text, or against every weight of it, with 95 % intervals and the judge's
    name."""
    names = [*HEADLINE, *(["NRA"] if results["base"].get("NRA") is not None else [])]
    rows = {"base": results["base"]}
    if results.get("scales"):
        rows |= {f"weight {side['scale']:g}": side for side in results["scales"] if side["scale"]}
    elif results["lora_scale"]:
        rows["adapter"] = results["adapter"]
    lines = [" ".join([f"{'':12}", *(f"{name:>22}" for name in names)]) + "   (percent)"]
    for label, side in rows.items():
        lines.append(" ".join([f"{label:12}", *(f"{_cell(side, name):>22}" for name in names)]))
    for name in further_metrics(results):
        base, adapter = (_cell(results[side], name) for side in ("base", "adapter"))
        lines.append(f"{name}: {base}, then {adapter}")
    for name, found in results["adapter"].get("measures", {}).items():
        lines.append(f"{name}: {found['mean']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]")
    if counts := results["base"].get("detections"):
        after = results["adapter"]["detections"]
        lines.append(
            "detections: " + ", ".join(f"{name} {count} then {after[name]}" for name, count in counts.items())
        )
    images = results["adapter"]["images"]["UA"]
    return "\n".join(
        [
            *lines,
            f"judge: {results['judge']}; {results['images_per_side']} images a side, {images} of the concept; in "
            "brackets 95 % intervals",
        ]
    )


def further_metrics(results: Mapping[str, Any]) -> list[str]:
    """The metrics that the protocol has beyond those of every protocol."""
    side = results["adapter"]
    return [name for name in side["images"] if name not in METRICS and side.get(name) is not None]


def grid_title(results: Mapping[str, Any]) -> str:
    """Headline and metrics for the before/after picture, with the judge's name."""
    erased = ", ".join(listed(results.get("concept"))) or "-"
    base, adapter = results.get("base") or {}, results.get("adapter") or {}
    metrics = [
        f"{name} {base[name]:.1f} → {adapter[name]:.1f}"
        for name in HEADLINE
        if base.get(name) is not None and adapter.get(name) is not None
    ]
    judge = results.get("judge") or "unknown"
    return f"Erased: {erased}\n{' · '.join(metrics)} (percent, base → adapter; judge: {judge})"


def pareto_title(results: Mapping[str, Any]) -> str:
    """Headline of the curves, with the judge's name."""
    return (
        f"Erased: {', '.join(listed(results.get('concept'))) or '-'}; numbers are weights of the adapter, bars "
        f"95 % intervals; judge: {results.get('judge') or 'unknown'}"
    )


def _values(found: Sequence[Seen]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([seen.values[name] for seen in found]) for name in found[0].values}


def _side(
    examination: Examination,
    found: Sequence[Seen],
    ids: Sequence[int],
    measures: Measures | None,
    base: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:
    verdicts, values = [verdict for seen in found for verdict in seen.verdicts], _values(found)
    side = _metrics(examination, verdicts, ids)
    for name, kept in examination.without.items():
        counted = set(kept)
        rows = [row for row, i in enumerate(ids) if i in counted]
        side[name] = _metrics(examination, [verdicts[row] for row in rows], [ids[row] for row in rows])
    classes = examination.per_class(verdicts, ids)
    side["per_class"] = {
        domain: {name: _rounded(value) for name, value in of_domain.items()}
        for domain, of_domain in classes.items()
    }
    counts = {name: rows for name, rows in values.items() if name.startswith(COUNT)}
    if counts:
        side["detections"] = {name.removeprefix(COUNT): int(rows.sum()) for name, rows in counts.items()}
    side["changed_images"] = _rounded(100 * float(np.mean(values[CHANGED])))
    if measures:
        measured = measures.summarize(values, base, ids, examination.forget)
        side["measures"] = {
            name: {"mean": round(value["mean"], 4), "ci95": [round(bound, 4) for bound in value["ci95"]]}
            for name, value in measured.items()
        }
    return side


def _metrics(examination: Examination, verdicts: Sequence[Verdict], ids: Sequence[int]) -> dict[str, Any]:
    scores = examination.scores(verdicts, ids)
    intervals = {name: of.interval() for name, of in scores.items()}
    return {
        **{name: _rounded(of.percent()) for name, of in scores.items()},
        "ci95": {
            name: None if bounds is None else [_rounded(bound) for bound in bounds]
            for name, bounds in intervals.items()
        },
        "images": {name: of.images for name, of in scores.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _cell(side: Mapping[str, Any], name: str) -> str:
    if side.get(name) is None:
        return "-"
    low, high = side["ci95"][name]
    return f"{side[name]:.2f} [{low:.1f}, {high:.1f}]"
