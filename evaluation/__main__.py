"""Judge an adapter: `python -m evaluation --adapter DIR --output_dir DIR` reports UA, IRA and CRA of base and adapter side by side.

The adapter is loaded with `load_lora_weights`, as any user would load it. Images and verdicts are kept in --output_dir while they come, so that the same
command goes on where it was interrupted; under `accelerate launch` the processes share the work. docs/evaluation.md explains protocols and figures.
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
from accelerate.utils import InitProcessGroupKwargs

import canvas
from environment.base import add_base_arguments, base_options, load_pipeline
from environment.errors import friendly_errors, friendly_interrupts
from evaluation.examination import Examination, JudgeExamination, TeacherExamination
from evaluation.grid import before_after
from evaluation.judge import ImageJudge, weights_digest
from evaluation.judges import load_judge, zero_shot_judge
from evaluation.measures import Features, Measures, clip_features, inception_features, judge_features, reference_features
from evaluation.observation import Store
from evaluation.pareto import pareto
from evaluation.prompt_file import FileExamination, read_prompt_file
from evaluation.protocol import BUNDLED_PIPELINE, default_guidance, evaluate, grid_title, list_jobs, public_name, table
from evaluation.shards import Side
from evaluation.unlearncanvas import LITE, NAME, UnlearnCanvasExamination, UnlearnCanvasJudge
from hub.adapter import find_adapter, load_adapter
from hub.provenance import RESULTS_NAME, find_base, read_results, what_adapter_says
from networks.checkpoint import resolve_directory
from policy.backbone import Backbone
from reward.spec import make_spec, read_prompts
from reward.teacher import Teacher

GRID_NAME, PARETO_NAME, IMAGES = "before_after.png", "pareto.png", "images"
CANVAS, GRID, CLIP_JUDGE = "canvas", "grid", "clip"
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="Directory with pytorch_lora_weights.safetensors, or an id on the Hub.")
    parser.add_argument("--output_dir", type=Path, required=True, help=f"Where {RESULTS_NAME}, {GRID_NAME} and the images are written.")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="Begin anew in an --output_dir that is not empty.")
    add_base_arguments(parser, default="what the adapter says")
    parser.add_argument("--mixed_precision", choices=list(PRECISIONS), default="no", help="Precision that the pipeline is loaded in.")
    parser.add_argument("--concept", nargs="+", metavar="TEXT", help="What the adapter was to erase. Default: what the adapter says.")
    parser.add_argument(
        "--protocol",
        default=GRID,
        metavar="NAME_OR_FILE",
        help=f"What is drawn: every combination of the judge's classes ({GRID}; {CANVAS} is that of the bundled world), {NAME}, {LITE} (a subset of it), "
        "or a .csv or .jsonl file with the columns prompt, group (forget, in_domain, cross_domain, neighbour) and label. "
        "Default: grid; without a judge the prompts of --forget_prompts and --retain_prompts.",
    )
    parser.add_argument(
        "--judge_name_or_path",
        metavar="NAME",
        help="A judge made by this project, a transformers image classifier (directory or Hub id), or clip, which compares the labels of a prompt file by "
        "--clip_model. Default, for the bundled base: the bundled one.",
    )
    parser.add_argument("--style_classifier", type=Path, metavar="FILE", help=f"For {NAME}: the benchmark's ViT for its 51 themes.")
    parser.add_argument("--object_classifier", type=Path, metavar="FILE", help=f"For {NAME}: the benchmark's ViT for its 20 objects.")
    parser.add_argument(
        "--neighbours", nargs="+", default=[], metavar="CLASS", help="Classes to report apart. Default: the nearest in CLIP's text space."
    )
    parser.add_argument(
        "--scales",
        type=float,
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
    parser.add_argument("--num_inference_steps", type=int, help="Steps of the deterministic sampler. Default: the protocol's own, else 30.")
    parser.add_argument("--guidance_scale", type=float, help="Classifier-free guidance. Default: the protocol's own, else the pipeline's.")
    parser.add_argument("--eval_batch_size", type=int, default=64, help="Images drawn at a time, at most 64.")
    parser.add_argument(
        "--clip_model",
        help="The open_clip model of the CLIP score, best one that the reward has not seen: NAME, hf-hub:ID or local-dir:DIR. It judges too where no "
        "judge is named. Default, for the bundled base: the bundled one.",
    )
    parser.add_argument("--clip_pretrained", help="open_clip's pretrained tag or a safetensors file, for an architecture name.")
    parser.add_argument(
        "--fid_features",
        default="judge",
        metavar="NAME_OR_FILE",
        help="Whose features FID and KID compare: judge, clip, a file of torchvision's Inception v3 weights (.pth or .safetensors), or none.",
    )
    parser.add_argument(
        "--reference_images", type=Path, metavar="DIR", help="Real images for FID and KID. Default: the base's images of the same prompts."
    )
    parser.add_argument(
        "--base_images", type=Path, metavar="DIR", help="Keep the base's images here, so that evaluations of several adapters share them."
    )
    parser.add_argument("--forget_prompts", type=Path, help="For a base without a judge: prompts that ask for the concept, one a line.")
    parser.add_argument("--retain_prompts", type=Path, help="For a base without a judge: prompts to be drawn as before, one a line.")
    args = parser.parse_args(input_args)
    if Path(args.adapter).is_dir() and args.output_dir.resolve() == Path(args.adapter).resolve():
        parser.error("--output_dir is the adapter's own directory, whose results.json it would replace; choose another.")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir {args.output_dir} is a file.")
    begun = (args.output_dir / IMAGES).is_dir()
    if args.output_dir.is_dir() and any(args.output_dir.iterdir()) and not (begun or args.overwrite_output_dir):
        parser.error(f"--output_dir {args.output_dir} is not empty and holds no evaluation; choose another or add --overwrite_output_dir.")
    if (args.num_inference_steps is not None and args.num_inference_steps < 1) or args.eval_batch_size < 1:
        parser.error("--num_inference_steps and --eval_batch_size must be at least 1.")
    if len(set(args.seeds or [])) < len(args.seeds or []):
        parser.error("--seeds holds a seed twice.")
    if min(args.scales) < 0:
        parser.error("--scales must not be negative.")
    return args


def main(args: argparse.Namespace) -> None:
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=7))  # one process may have to wait for another's shards
    accelerator = Accelerator(kwargs_handlers=[patience])
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    adapter = find_adapter(args.adapter)
    directory = adapter.parent if Path(args.adapter).is_dir() else resolve_directory(args.adapter, None, [adapter.name, RESULTS_NAME])
    said = what_adapter_says(directory)
    concepts = args.concept or said["concept"]
    base = canvas.PIPELINE if args.protocol == CANVAS else find_base(args.pretrained_model_name_or_path, said["base"])
    bundled, device = public_name(base) == BUNDLED_PIPELINE, accelerator.device
    clip_model = args.clip_model or (f"local-dir:{canvas.CLIP}" if bundled else None)
    teacher = Teacher.from_pretrained(clip_model, args.clip_pretrained, device) if clip_model else None
    clip_name = name_clip(clip_model, read_results(directory).get("settings")) if clip_model else None
    examination = choose_examination(args, concepts, bundled, teacher, clip_name, device)
    features = choose_features(args, examination, teacher, clip_name, device)
    revision = args.revision or (None if args.pretrained_model_name_or_path else said["revision"])
    pipe = load_pipeline(base, revision, dtype=PRECISIONS[args.mixed_precision], **base_options(args)).to(device)
    base_digest = weights_digest(pipe.unet.conv_in)  # tells one local pipeline from another of the same name
    load_adapter(pipe, args.adapter)
    reference = None
    if args.reference_images:
        if features is None:
            raise ValueError("--reference_images needs features to compare; leave --fid_features none out.")
        reference = reference_features(args.reference_images, features.embed, Backbone.of(pipe).image_size[::-1])
    named = {"reference_name": args.reference_images.name} if args.reference_images else {}
    measures = Measures(features, teacher, clip_name, reference, **named)

    if args.overwrite_output_dir and accelerator.is_main_process:
        shutil.rmtree(args.output_dir / IMAGES, ignore_errors=True)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        store = open_store(args, examination, pipe, {"base": public_name(base), "base_digest": base_digest}, adapter)
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
            wait=accelerator.wait_for_everyone,
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
        print(f"warning: the base seldom draws the concept in the first place (its own UA is {results['base']['UA']:.1f} %).", file=sys.stderr)


def choose_examination(
    args: argparse.Namespace, concepts: list[str] | None, bundled: bool, teacher: Teacher | None, clip_name: str | None, device: torch.device
) -> Examination:
    """The protocol that is named and its judge: the judge that is named, the bundled one for the bundled base, else the CLIP model.

    Raises:
        ValueError: there is nothing to judge with, or the judge does not know what it is asked for.
    """
    encode_text = teacher.encode_text if teacher else None
    if args.protocol not in (GRID, CANVAS, NAME, LITE):
        if not Path(args.protocol).is_file():
            raise ValueError(f"--protocol {args.protocol} is neither a file nor one of {GRID}, {CANVAS}, {NAME}, {LITE}.")
        rows = read_prompt_file(args.protocol)
        judge, name = choose_judge(args, bundled, [row.label for row in rows], teacher, clip_name, device)
        return FileExamination(judge, rows, name, Path(args.protocol).name)
    if not concepts:
        raise ValueError("The adapter does not say what it erases; name it with --concept.")
    if args.protocol in (NAME, LITE):
        if not (args.style_classifier and args.object_classifier):
            raise ValueError(f"--protocol {args.protocol} needs the benchmark's classifiers: --style_classifier FILE and --object_classifier FILE.")
        heads = UnlearnCanvasJudge.from_files(args.style_classifier, args.object_classifier, device)
        of_benchmark = UnlearnCanvasExamination(
            heads, concepts, "UnlearnCanvas's ViT-L/16", args.protocol == LITE, neighbours=args.neighbours, encode_text=encode_text
        )
        of_benchmark.note_changes(args.seeds, args.num_inference_steps, args.guidance_scale)
        return of_benchmark
    if args.judge_name_or_path or (bundled and not args.retain_prompts):
        judge, name = choose_judge(args, bundled, [], teacher, clip_name, device)
        if not judge.prompt:
            raise ValueError("This judge has no wording of its own for prompts; give them with --protocol FILE.csv.")
        return JudgeExamination(judge, concepts, name, args.neighbours, encode_text)
    if not teacher or not args.retain_prompts:
        raise ValueError(
            "This base has no judge: name one with --judge_name_or_path, or judge by CLIP with --clip_model and --retain_prompts FILE "
            "(and --forget_prompts FILE)."
        )
    forget, retain = args.forget_prompts and read_prompts(args.forget_prompts), read_prompts(args.retain_prompts)
    known = [*(forget or []), *retain]
    spec = make_spec(
        concepts, known, teacher.encode_text, forget_prompts=forget, retain_prompts=None if forget is None else retain, num_retain_prompts=len(known)
    )
    return TeacherExamination(teacher, spec)


def choose_judge(
    args: argparse.Namespace, bundled: bool, labels: list[str], teacher: Teacher | None, clip_name: str | None, device: torch.device
) -> tuple[ImageJudge, str]:
    """The judge that is named, or the bundled one for the bundled base, or for a prompt file the CLIP model; with its name.

    Raises:
        ValueError: it cannot be had.
    """
    if args.judge_name_or_path == CLIP_JUDGE or not (args.judge_name_or_path or bundled):
        if not (teacher and labels):
            raise ValueError("A CLIP judges the labels of a prompt file: give --clip_model and --protocol FILE.csv, or name a judge.")
        return zero_shot_judge(teacher, list(dict.fromkeys(labels))), f"{clip_name}, zero-shot"
    path = args.judge_name_or_path or canvas.JUDGE
    return load_judge(path, device), public_name(path)


def name_clip(clip_model: str, settings: dict[str, Any] | None) -> str:
    """How results call the CLIP model: with a word of warning if the adapter's settings say that it was the reward."""
    name = public_name(clip_model.removeprefix("local-dir:"))
    rewarded = settings is not None and name == (settings.get("clip_model") or public_name(canvas.CLIP))
    return f"open_clip {name}" + (" (the reward's own)" if rewarded else "")


def choose_features(
    args: argparse.Namespace, examination: Examination, teacher: Teacher | None, clip_name: str | None, device: torch.device
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


def pareto_title(results: dict[str, Any]) -> str:
    """Headline of the curves, with the judge's name."""
    return f"Erased: {', '.join(results['concept'] or ['-'])}; numbers are weights of the adapter, bars 95 % intervals; judge: {results['judge']}"


def open_store(args: argparse.Namespace, examination: Examination, pipe: Any, base: dict[str, str], adapter: Path) -> Store:
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
        float(scale): Side(images / f"weight-{scale:g}", {**settings, "adapter": digest, "scale": scale}, kind) for scale in args.scales if scale
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
