"""Base and adapter side by side on one pipeline: drawn, judged, summarized."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

import canvas
from evaluation.examination import Examination, JudgeExamination
from evaluation.generate import adapter_disabled, evaluation_mode, generate
from evaluation.grid import Pair
from evaluation.metrics import FIGURES, HEADLINE, summarize
from networks.versions import versions

BUNDLED_PIPELINE, BUNDLED_JUDGE = "bundled canvas", "bundled canvas judge"


@dataclass
class Evaluation:
    """What was found: `results` goes to results.json as it is, `pairs` to the before/after grid."""

    results: dict[str, Any]
    pairs: list[Pair] = field(default_factory=list)


def evaluate(
    pipe: DiffusionPipeline,
    examination: Examination,
    seeds: Sequence[int],
    num_inference_steps: int = 30,
    guidance_scale: float | None = None,
    batch_size: int = 64,
    showcase: int = 8,
    progress: bool = True,
) -> Evaluation:
    """Draw and judge every prompt with the adapter disabled and enabled, on one pipeline that carries it.

    Args:
        pipe: a pipeline with an adapter; its sampler and modes are as before afterwards.
        seeds: one image a prompt and seed.
        guidance_scale: None is the pipeline's own default.
        showcase: how many forget prompts, and how many retain prompts, `pairs` holds (first seed).

    Returns:
        `results` with `base` and `adapter` (means over seeds; within each `ci95`, `per_seed`, `per_class`), `seeds`, `judge`, `targets`,
        `images_per_side`, `changed_images` (percent of images in which the adapter changed any pixel), settings, versions, seconds.
    """
    started = time.perf_counter()
    shown = examination.showcase(showcase)
    sides: dict[str, dict[str, Any]] = {}
    pictures: dict[str, dict[int, Image.Image]] = {}
    digests: dict[str, list[int]] = {}

    def run(side: str) -> None:
        verdicts: dict[int, list[Any]] = {seed: [] for seed in seeds}
        pictures[side], digests[side] = {}, []
        pending: list[tuple[int, int, Image.Image]] = []
        total = len(seeds) * len(examination.prompts)
        bar = f"evaluating the {side}" if progress else None
        for i, seed, image in generate(pipe, examination.prompts, seeds, num_inference_steps, guidance_scale, batch_size, bar):
            pending.append((i, seed, image))
            digests[side].append(hash(np.asarray(image).tobytes()))
            if seed == seeds[0] and i in shown:
                pictures[side][i] = image
            if len(pending) == batch_size or len(digests[side]) == total:
                judged = examination.examine([image for _, _, image in pending], [i for i, _, _ in pending])
                for (_, of, _), verdict in zip(pending, judged, strict=True):
                    verdicts[of].append(verdict)
                pending.clear()
        sides[side] = _side(examination, verdicts)

    with evaluation_mode(pipe):
        with adapter_disabled(pipe):
            run("base")
        run("adapter")
    changed = [a != b for a, b in zip(digests["base"], digests["adapter"], strict=True)]
    results = {
        **sides,
        "seeds": list(seeds),
        "judge": examination.name,
        "images_per_side": len(changed),
        "prompts": {"forget": sum(examination.forget), "retain": len(examination.forget) - sum(examination.forget)},
        "changed_images": round(100 * sum(changed) / len(changed), 2),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": default_guidance(pipe) if guidance_scale is None else guidance_scale,
        "versions": versions(),
        "evaluation_seconds": round(time.perf_counter() - started, 1),
    }
    if isinstance(examination, JudgeExamination):
        results["targets"] = {domain: sorted(names) for domain, names in examination.targets.items()}
    pairs = [Pair(examination.prompts[i], pictures["base"][i], pictures["adapter"][i], examination.forget[i]) for i in shown]
    return Evaluation(results, pairs)


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
    """Base against adapter as text, with intervals over seeds and the judge's name."""
    lines = [f"{'':8} {'UA':>16} {'IRA':>16} {'CRA':>16}   (percent)"]
    for side in ("base", "adapter"):
        cells = " ".join(f"{_cell(results[side], name):>16}" for name in HEADLINE)
        lines.append(f"{side:8} {cells}")
    count = len(results["seeds"])
    interval = f", mean ± 95 % interval over {count} seeds" if count > 1 else ", one seed"
    return "\n".join([*lines, f"judge: {results['judge']}; {results['images_per_side']} images a side{interval}"])


def grid_title(results: Mapping[str, Any]) -> str:
    """Headline and figures for the before/after picture, with the judge's name."""
    concept = results["concept"]
    erased = concept if isinstance(concept, str) else ", ".join(concept)
    base, adapter = results["base"], results["adapter"]
    figures = [f"{name} {base[name]:.1f} → {adapter[name]:.1f}" for name in HEADLINE if base.get(name) is not None and adapter.get(name) is not None]
    return f"Erased: {erased}\n{' · '.join(figures)} (percent, base → adapter; judge: {results['judge']})"


def _side(examination: Examination, verdicts: Mapping[int, list[Any]]) -> dict[str, Any]:
    order = list(range(len(examination.prompts)))
    per_seed = [examination.figures(of_seed, order) for of_seed in verdicts.values()]
    summary = summarize(per_seed)
    together = [verdict for of_seed in verdicts.values() for verdict in of_seed]
    per_class = examination.per_class(together, order * len(verdicts))
    return {
        **{name: _rounded(summary[name]["mean"]) for name in FIGURES},
        "ci95": {name: _rounded(summary[name]["ci95"]) for name in FIGURES},
        "per_seed": {name: [_rounded(of_seed[name]) for of_seed in per_seed] for name in FIGURES},
        "per_class": {domain: {name: _rounded(value) for name, value in classes.items()} for domain, classes in per_class.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _cell(side: Mapping[str, Any], name: str) -> str:
    if side.get(name) is None:
        return "-"
    ci95 = side.get("ci95", {}).get(name)
    return f"{side[name]:.2f}" + ("" if ci95 is None else f" ± {ci95:.2f}")
