"""Judge an adapter: `python -m evaluation --adapter DIR --output_dir DIR` reports UA, IRA and CRA of base and
adapter side by side.

The adapter is loaded with `load_lora_weights`, as any user would load it. Images and verdicts are kept in
--output_dir while they come, so that the same command goes on where it was interrupted; under `accelerate
launch` the processes share the work. docs/evaluation.md explains protocols and figures.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from common.command_line import weight
from common.errors import friendly_errors, friendly_interrupts
from common.memory import advised
from common.names import public_name
from evaluation.choice import add_examination_arguments, choose
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
from evaluation.observation import Store
from evaluation.pareto import pareto
from evaluation.protocol import default_guidance, evaluate, grid_title, list_jobs, pareto_title, table
from evaluation.shards import Side
from hub.adapter import load_adapter
from hub.provenance import RESULTS_NAME
from pipelines.backbone import Backbone
from reward.teacher import Teacher

GRID_NAME, PARETO_NAME, IMAGES = "before_after.png", "pareto.png", "images"


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help=f"Where {RESULTS_NAME}, {GRID_NAME} and the images are written.",
    )
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="Begin anew in an --output_dir that is not empty."
    )
    add_examination_arguments(parser)
    parser.add_argument(
        "--scales",
        type=weight,
        nargs="+",
        default=[1.0],
        help="Weights of the adapter; 0 is the base. Several make a table and a picture of the price.",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="One image a prompt and seed. Default: the protocol's own; else 0 1 2, and for prompts that ask for the concept as many more as make 24 images.",
    )
    parser.add_argument(
        "--fid_features",
        default="judge",
        metavar="NAME_OR_FILE",
        help="Whose features FID and KID compare: judge, clip, a file of torchvision's Inception v3 weights (.pth or .safetensors), or none.",
    )
    parser.add_argument(
        "--reference_images",
        type=Path,
        metavar="DIR",
        help="Real images for FID and KID. Default: the base's images of the same prompts.",
    )
    parser.add_argument(
        "--base_images",
        type=Path,
        metavar="DIR",
        help="Keep the base's images here, so that evaluations of several adapters share them.",
    )
    args = parser.parse_args(input_args)
    if Path(args.adapter).is_dir() and args.output_dir.resolve() == Path(args.adapter).resolve():
        parser.error(
            "--output_dir is the adapter's own directory, whose results.json it would replace; choose another."
        )
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir {args.output_dir} is a file.")
    begun = (args.output_dir / IMAGES).is_dir()
    if (
        args.output_dir.is_dir()
        and any(args.output_dir.iterdir())
        and not (begun or args.overwrite_output_dir)
    ):
        parser.error(
            f"--output_dir {args.output_dir} is not empty and holds no evaluation; choose another or add --overwrite_output_dir."
        )
    if len(set(args.seeds or [])) < len(args.seeds or []):
        parser.error("--seeds holds a seed twice.")
    return args


@advised("eval_batch_size")
def main(args: argparse.Namespace) -> None:
    patience = InitProcessGroupKwargs(
        timeout=datetime.timedelta(days=7)
    )  # one process may have to wait for another's shards
    accelerator = Accelerator(kwargs_handlers=[patience])
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    chosen = choose(args, accelerator.device)
    concepts, base, examination, teacher, clip_name = (
        chosen.concepts,
        chosen.base,
        chosen.examination,
        chosen.teacher,
        chosen.clip_name,
    )
    features = choose_features(args, examination, teacher, clip_name, accelerator.device)
    pipe = chosen.load_base(args)
    args.eval_batch_size = args.eval_batch_size or Backbone.of(pipe).usual_batch_size
    base_digest = weights_digest(pipe.unet.conv_in)  # tells one local pipeline from another of the same name
    load_adapter(pipe, args.adapter)
    reference = None
    if args.reference_images:
        if features is None:
            raise ValueError("--reference_images needs features to compare; leave --fid_features none out.")
        reference = reference_features(
            args.reference_images, features.embed, Backbone.of(pipe).image_size[::-1]
        )
    named = {"reference_name": args.reference_images.name} if args.reference_images else {}
    measures = Measures(features, teacher, clip_name, reference, **named)

    if args.overwrite_output_dir and accelerator.is_main_process:
        shutil.rmtree(args.output_dir / IMAGES, ignore_errors=True)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        store = open_store(
            args, examination, pipe, {"base": public_name(base), "base_digest": base_digest}, chosen.adapter
        )
    with friendly_interrupts("What has been drawn is kept; the same command goes on."):
        found = evaluate(
            pipe,
            examination,
            args.seeds,
            args.num_inference_steps,
            args.guidance_scale,
            args.eval_batch_size,
            scales=args.scales,
            measures=measures,
            store=store,
            processes=(accelerator.process_index, accelerator.num_processes),
            gather=gather_object,
            progress=accelerator.is_main_process,
        )
    if found is None:
        return
    results = {"concept": concepts, "base_model_name_or_path": public_name(base), **found.results}
    write_results(results, args.output_dir / RESULTS_NAME)
    before_after(found.pairs, args.output_dir / GRID_NAME, grid_title(results))
    written = [args.output_dir / RESULTS_NAME, args.output_dir / GRID_NAME]
    if "scales" in results:
        pareto(results["scales"], args.output_dir / PARETO_NAME, pareto_title(results))
        written.append(args.output_dir / PARETO_NAME)
    print(f"\n{table(results)}\nwrote {', '.join(map(str, written))}")
    if results["changed_images"] == 0 and results["lora_scale"]:
        print("warning: the adapter changes no image; it does nothing on this base.", file=sys.stderr)
    if results["base"]["UA"] >= 50:
        print(
            f"warning: the base seldom draws the concept in the first place (its own UA is {results['base']['UA']:.1f} %).",
            file=sys.stderr,
        )


def choose_features(
    args: argparse.Namespace,
    examination: Examination,
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
) -> Features | None:
    """Whose features FID and KID compare.

    Raises:
        ValueError: they cannot be had.
    """
    if args.fid_features == "none":
        return None
    judge = getattr(examination, "judge", None)
    if args.fid_features == "judge" and judge is not None:
        return judge_features(judge, examination.name)
    if args.fid_features in ("judge", "clip"):
        if teacher is None or clip_name is None:
            raise ValueError("--fid_features clip needs --clip_model.")
        return clip_features(teacher, clip_name)
    return inception_features(args.fid_features, device)


def open_store(
    args: argparse.Namespace, examination: Examination, pipe: Any, base: dict[str, str], adapter: Path
) -> Store:
    """The directories of base and adapter, each with what its images depend on.

    Raises:
        ValueError: they hold images of another evaluation.
    """
    guidance = examination.guidance_scale if args.guidance_scale is None else args.guidance_scale
    jobs = [[examination.cells[i].prompt, seed] for i, seed in list_jobs(examination, args.seeds)]
    settings = {
        **base,
        "revision": args.revision,
        "variant": args.variant,
        "mixed_precision": args.mixed_precision,
        "num_inference_steps": args.num_inference_steps or examination.num_inference_steps,
        "guidance_scale": default_guidance(pipe) if guidance is None else guidance,
        "images": len(jobs),
        "prompts_and_seeds": hashlib.sha256(json.dumps(jobs).encode()).hexdigest(),
    }
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    images, kind = args.output_dir / IMAGES, examination.image_format
    sides = {
        float(scale): Side(
            images / f"weight-{scale:g}", {**settings, "adapter": digest, "scale": scale}, kind
        )
        for scale in args.scales
        if scale
    }
    return Store(Side(args.base_images or images / "base", settings, kind), sides)


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, complete or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
