"""Judge an adapter: `python -m evaluation --adapter DIR --output_dir DIR` reports UA, IRA and CRA of base and
adapter side by side.

The adapter is loaded with `load_lora_weights`, as any user would load it. Without one a pipeline is judged as
it is, for example one that an adapter was fused into. Images and verdicts are kept in
--output_dir, so that the same command goes on where it was interrupted; under `accelerate launch` the
processes share the work. docs/evaluation.md explains protocols and metrics.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from diffusers import DiffusionPipeline

from common.errors import friendly_errors, friendly_interrupts
from common.files import discard, is_empty, write_json
from common.flags import IMAGE_SEED, flag, parse
from common.lock import exclusive
from common.memory import advised
from common.names import public_name
from evaluation.choice import Choice, ExaminationConfig, choose
from evaluation.examination import Examination
from evaluation.grid import before_after
from evaluation.judge import weights_digest
from evaluation.measures import (
    Features,
    Measures,
    clip_features,
    inception_features,
    judge_features,
    reference_features,
)
from evaluation.observation import BASE, Store
from evaluation.pareto import pareto
from evaluation.protocol import evaluate, grid_title, guidance_by_prompt, list_jobs, pareto_title, table
from evaluation.shards import Side
from hub.adapter import load_adapter
from hub.provenance import AdapterBase
from hub.results import RESULTS_NAME
from pipelines.backbone import Backbone
from pipelines.base import with_downloads
from reward.teacher import Teacher

logger = logging.getLogger(__name__)

GRID_NAME, PARETO_NAME, IMAGES = "before_after.png", "pareto.png", "images"
SHOWN_CUTS = 3
"""Prompts whose cut is said."""
PATIENCE = datetime.timedelta(days=7)
"""How long a process may wait for the shards of another."""


@dataclass(frozen=True)
class OutputConfig:
    """Output."""

    output_dir: Path = flag(
        help=f"Where {RESULTS_NAME}, {GRID_NAME} and the images are written.", published=None
    )
    overwrite_output_dir: bool = flag(
        False, help="Start anew in an --output_dir that is not empty.", published=None
    )
    base_images: Path | None = flag(
        None,
        metavar="DIR",
        help="Keep the base's images here, so that evaluations of several adapters share them.",
        published=None,
    )


@dataclass(frozen=True)
class MeasureConfig:
    """Images and measurements."""

    scales: tuple[float, ...] = flag(
        (1.0,),
        at_least=-10,
        at_most=10,
        help="Weights of the adapter; 0 is the base, below it the adapter is taken away. Several make a table and a picture of the price.",
    )
    seeds: tuple[int, ...] | None = flag(
        None,
        within=IMAGE_SEED,
        help="One image for each prompt and seed. Default: the protocol's own, which a file may give each "
        "prompt; else 0 1 2, and for prompts that ask for the concept as many more as make 24 images.",
    )
    seed_offset: int = flag(
        0,
        within=IMAGE_SEED,
        help="Added to every seed: other images of the same prompts.",
    )
    fid_features: str = flag(
        "judge",
        metavar="NAME_OR_FILE",
        help="Whose features FID and KID compare: judge, clip, a file of torchvision's Inception v3 weights "
        "(.pth or .safetensors), or none.",
    )
    reference_images: Path | None = flag(
        None,
        metavar="DIR",
        help="Real images for FID and KID. Default: the base's images of the same prompts.",
        published=None,
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """All settings of an evaluation."""

    output: OutputConfig
    examination: ExaminationConfig
    base: AdapterBase
    measures: MeasureConfig

    @property
    def scales(self) -> tuple[float, ...]:
        """Weights of the adapter; without one there is the base alone."""
        return self.measures.scales if self.examination.adapter else (BASE,)

    def with_batch_size(self, usual: int) -> EvaluationConfig:
        """With the base's usual batch size where none was given."""
        return replace(self, examination=self.examination.with_batch_size(usual))


def parse_config(arguments: Sequence[str] | None = None) -> EvaluationConfig:
    """The settings of a command line."""
    return parse(EvaluationConfig, arguments, __doc__, prog="python -m evaluation")


def check_config(config: EvaluationConfig) -> None:
    """Refuse what can be known to be wrong before anything is loaded.

    Raises:
        ValueError: which flag is wrong.
    """
    adapter, output = config.examination.adapter, config.output.output_dir
    if adapter and Path(adapter).is_dir() and output.resolve() == Path(adapter).resolve():
        raise ValueError(
            "--output_dir is the adapter's own directory, whose results.json it would replace; choose another."
        )
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file.")
    begun = (output / IMAGES).is_dir() or config.output.overwrite_output_dir
    if output.is_dir() and not is_empty(output) and not begun:
        raise ValueError(
            f"--output_dir {output} is not empty and holds no evaluation; choose another or add "
            "--overwrite_output_dir."
        )
    seeds = config.measures.seeds or ()
    if len(set(seeds)) < len(seeds):
        raise ValueError("--seeds holds a seed twice.")
    if adapter is None and config.measures.scales != MeasureConfig().scales:
        raise ValueError("--scales are weights of an adapter; name it with --adapter.")


@advised("eval_batch_size")
@with_downloads
def main(config: EvaluationConfig) -> None:
    check_config(config)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    chosen = choose(config.base, config.examination, accelerator.device, seeds=config.measures.seeds)
    chosen.examination.offset_seeds(config.measures.seed_offset)
    features = choose_features(
        config.measures.fid_features,
        chosen.examination,
        teacher=chosen.teacher,
        clip_name=chosen.clip_name,
        device=accelerator.device,
    )
    pipe = chosen.load_base()
    compare_with = partial(compare, accelerator=accelerator, chosen=chosen, pipe=pipe, features=features)
    advised("eval_batch_size")(compare_with)(config.with_batch_size(Backbone.of(pipe).usual_batch_size))


def compare(
    config: EvaluationConfig,
    *,
    accelerator: Accelerator,
    chosen: Choice,
    pipe: DiffusionPipeline,
    features: Features | None,
) -> None:
    """Compare the adapter with the base, where nothing else writes to the directory."""
    # The digest distinguishes local pipelines of the same name.
    base = {
        "base": public_name(chosen.base.name),
        "base_digest": weights_digest(Backbone.of(pipe).first_layer),
    }
    if config.examination.adapter:
        load_adapter(pipe, config.examination.adapter)
    unseen = cut_prompts(Backbone.of(pipe), chosen.examination)
    measures = choose_measures(config.measures, features, chosen, image_size=Backbone.of(pipe).image_size)
    with exclusive(config.output.output_dir) if accelerator.is_main_process else nullcontext():
        draw_and_judge(
            config,
            accelerator=accelerator,
            chosen=chosen,
            pipe=pipe,
            measures=measures,
            base=base,
            unseen=unseen,
        )


def draw_and_judge(
    config: EvaluationConfig,
    *,
    accelerator: Accelerator,
    chosen: Choice,
    pipe: DiffusionPipeline,
    measures: Measures,
    base: dict[str, str],
    unseen: dict[str, str],
) -> None:
    """Draw, judge and write what was found.

    Args:
        base: what the images depend on beside the settings.
        unseen: by `cut_prompts`.
    """
    output = config.output.output_dir
    if config.output.overwrite_output_dir and accelerator.is_main_process:
        discard(output / IMAGES)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        store = open_store(config, chosen.examination, pipe, base, chosen.adapter)
    with friendly_interrupts("What has been drawn is kept; the same command goes on."):
        found = evaluate(
            pipe,
            chosen.examination,
            config.measures.seeds,
            num_inference_steps=config.examination.num_inference_steps,
            guidance_scale=config.examination.guidance_scale,
            batch_size=config.examination.eval_batch_size,
            scales=config.scales,
            measures=measures,
            store=store,
            processes=(accelerator.process_index, accelerator.num_processes),
            gather=gather_object,
            progress=accelerator.is_main_process,
        )
    if found is None:
        return
    results = {"concept": chosen.concepts, "base_model_name_or_path": base["base"], **found.results}
    results |= {"cut_prompts": unseen} if unseen else {}
    write_json(output / RESULTS_NAME, results)
    before_after(found.pairs, output / GRID_NAME, grid_title(results))
    written = [output / RESULTS_NAME, output / GRID_NAME]
    if "scales" in results and results["base"]["UA"] is not None:
        pareto(results["scales"], output / PARETO_NAME, pareto_title(results))
        written.append(output / PARETO_NAME)
    print(f"\n{table(results)}\nwrote {', '.join(map(str, written))}")
    if results["changed_images"] == 0 and results["lora_scale"]:
        print("warning: the adapter changes no image; it does nothing on this base.", file=sys.stderr)
    if (results["base"]["UA"] or 0) >= 50:
        print(
            "warning: the base seldom draws the concept in the first place (its own UA is "
            f"{results['base']['UA']:.1f} %).",
            file=sys.stderr,
        )


def cut_prompts(backbone: Backbone, examination: Examination) -> dict[str, str]:
    """The prompts that are longer than the base's text window, each with the words that the base never sees;
    they are said too, for an image cannot show what they ask for."""
    ends = {prompt: end for prompt in examination.prompts if (end := backbone.unseen(prompt))}
    for prompt, end in list(ends.items())[:SHOWN_CUTS]:
        logger.warning(f"The base's text window cuts {end!r} off the end of {prompt!r}.")
    if len(ends) > SHOWN_CUTS:
        logger.warning(
            f"{len(ends) - SHOWN_CUTS} more prompts are cut; cut_prompts in {RESULTS_NAME} has all."
        )
    return ends


def choose_features(
    name: str,
    examination: Examination,
    *,
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
) -> Features | None:
    """Whose features FID and KID compare.

    Args:
        name: as --fid_features has it.

    Raises:
        ValueError: they cannot be loaded.
    """
    if name == "none":
        return None
    judge = getattr(examination, "judge", None)
    if name == "judge" and judge is not None:
        return judge_features(judge, examination.name)
    if name in ("judge", "clip"):
        if teacher is None or clip_name is None:
            raise ValueError("--fid_features clip needs --clip_model.")
        return clip_features(teacher, clip_name)
    return inception_features(name, device)


def choose_measures(
    config: MeasureConfig, features: Features | None, chosen: Choice, *, image_size: tuple[int, int]
) -> Measures:
    """What is measured apart from the verdicts.

    Args:
        image_size: (height, width) of what the base draws.

    Raises:
        ValueError: the reference images cannot be read, or there are no features to compare them by.
    """
    if config.reference_images is None:
        return Measures(features, chosen.teacher, chosen.clip_name)
    if features is None:
        raise ValueError("--reference_images needs features to compare; leave --fid_features none out.")
    reference = reference_features(config.reference_images, features.embed, image_size[::-1])
    return Measures(
        features,
        chosen.teacher,
        chosen.clip_name,
        reference=reference,
        reference_name=config.reference_images.name,
    )


def open_store(
    config: EvaluationConfig, examination: Examination, pipe: Any, base: dict[str, str], adapter: Path | None
) -> Store:
    """The directories of base and adapter, each with what its images depend on.

    Raises:
        ValueError: they hold images of another evaluation.
    """
    given = config.examination
    guidance = guidance_by_prompt(pipe, examination, given.guidance_scale)
    jobs = [[examination.cells[i].prompt, seed] for i, seed in list_jobs(examination, config.measures.seeds)]
    settings = {
        **base,
        "revision": config.base.revision,
        "variant": config.base.variant,
        "resolution": config.base.resolution,
        "prediction_type": config.base.prediction_type,
        "mixed_precision": given.mixed_precision,
        "num_inference_steps": given.num_inference_steps or examination.num_inference_steps,
        "guidance_scale": guidance[0] if len(set(guidance)) == 1 else guidance,
        "images": len(jobs),
        "prompts_and_seeds": hashlib.sha256(json.dumps(jobs).encode()).hexdigest(),
    }
    digest = adapter and hashlib.sha256(adapter.read_bytes()).hexdigest()
    images, kind = config.output.output_dir / IMAGES, examination.image_format
    sides = {
        float(scale): Side(
            images / f"weight-{scale:g}", {**settings, "adapter": digest, "scale": scale}, kind
        )
        for scale in config.scales
        if scale
    }
    return Store(Side(config.output.base_images or images / "base", settings, kind), sides)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
