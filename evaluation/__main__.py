"""Judge an adapter: `python -m evaluation --adapter DIR --output_dir DIR` reports UA, IRA and CRA of base and adapter side by side.

The adapter is loaded with `load_lora_weights`, as any user would load it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import canvas
from environment.base import add_base_arguments, base_options, load_pipeline
from environment.errors import friendly_errors
from evaluation.examination import Examination, JudgeExamination, TeacherExamination
from evaluation.grid import before_after
from evaluation.judge import Judge
from evaluation.protocol import BUNDLED_PIPELINE, evaluate, grid_title, public_name, table
from hub.adapter import load_adapter
from hub.provenance import RESULTS_NAME, find_base, what_adapter_says
from reward.spec import make_spec, read_prompts
from reward.teacher import Teacher

GRID_NAME = "before_after.png"


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, metavar="DIR", help="Directory with pytorch_lora_weights.safetensors.")
    parser.add_argument("--output_dir", type=Path, required=True, help=f"Where {RESULTS_NAME} and {GRID_NAME} are written.")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="Write into --output_dir though it is not empty.")
    add_base_arguments(parser, default="what the adapter says")
    parser.add_argument("--concept", nargs="+", metavar="TEXT", help="What the adapter was to erase. Default: what the adapter says.")
    parser.add_argument("--judge_name_or_path", type=Path, metavar="DIR", help="The base's judge. Default, for the bundled base: the bundled one.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="One image a prompt and seed.")
    parser.add_argument("--num_inference_steps", type=int, default=30, help="Denoising steps of the deterministic sampler.")
    parser.add_argument("--guidance_scale", type=float, help="Classifier-free guidance. Default: the pipeline's own.")
    parser.add_argument("--lora_scale", type=float, default=1.0, help="Weight of the adapter; 0 is the base.")
    parser.add_argument("--eval_batch_size", type=int, default=64, help="Images drawn at a time.")
    parser.add_argument("--clip_model", help="For a base without a judge: the open_clip model to judge with, NAME, hf-hub:ID or local-dir:DIR.")
    parser.add_argument("--clip_pretrained", help="open_clip's pretrained tag or a safetensors file, for an architecture name.")
    parser.add_argument("--forget_prompts", type=Path, help="For a base without a judge: prompts that ask for the concept, one a line.")
    parser.add_argument("--retain_prompts", type=Path, help="For a base without a judge: prompts to be drawn as before, one a line.")
    args = parser.parse_args(input_args)
    if not args.adapter.is_dir():
        parser.error(f"--adapter {args.adapter} is not a directory.")
    if args.output_dir.resolve() == args.adapter.resolve():
        parser.error("--output_dir is the adapter's own directory, whose results.json it would replace; choose another.")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output_dir {args.output_dir} is a file.")
    if args.output_dir.is_dir() and any(args.output_dir.iterdir()) and not args.overwrite_output_dir:
        parser.error(f"--output_dir {args.output_dir} is not empty; choose another or add --overwrite_output_dir.")
    if args.num_inference_steps < 1 or args.eval_batch_size < 1:
        parser.error("--num_inference_steps and --eval_batch_size must be at least 1.")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error("--seeds holds a seed twice.")
    return args


def main(args: argparse.Namespace) -> None:
    said = what_adapter_says(args.adapter)
    concepts = args.concept or said["concept"]
    if not concepts:
        raise ValueError("The adapter does not say what it erases; name it with --concept.")
    base = find_base(args.pretrained_model_name_or_path, said["base"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    examination = choose_examination(args, concepts, base, device)
    revision = args.revision or (None if args.pretrained_model_name_or_path else said["revision"])
    pipe = load_pipeline(base, revision, **base_options(args)).to(device)
    load_adapter(pipe, args.adapter)
    pipe.set_adapters(pipe.get_active_adapters(), args.lora_scale)

    found = evaluate(pipe, examination, args.seeds, args.num_inference_steps, args.guidance_scale, args.eval_batch_size)
    results = {
        "concept": concepts,
        "base_model_name_or_path": public_name(base),
        **found.results,
        "lora_scale": args.lora_scale,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_results(results, args.output_dir / RESULTS_NAME)
    before_after(found.pairs, args.output_dir / GRID_NAME, grid_title(results))
    print(f"\n{table(results)}\nwrote {args.output_dir / RESULTS_NAME} and {args.output_dir / GRID_NAME}")
    if results["changed_images"] == 0 and args.lora_scale:
        print("warning: the adapter changes no image; it does nothing on this base.", file=sys.stderr)
    if results["base"]["UA"] >= 50:
        print(f"warning: the base seldom draws the concept in the first place (its own UA is {results['base']['UA']:.1f} %).", file=sys.stderr)


def choose_examination(args: argparse.Namespace, concepts: list[str], base: str | Path, device: str) -> Examination:
    """The judge that is named, the bundled one for the bundled base, the teacher if a CLIP model is named.

    Raises:
        ValueError: there is nothing to judge with, or the judge does not know the concept.
    """
    judge = args.judge_name_or_path
    if judge is None and public_name(base) == BUNDLED_PIPELINE and not args.clip_model:
        judge = canvas.JUDGE
    if judge is not None:
        return JudgeExamination(Judge.from_pretrained(judge).to(device), concepts, public_name(judge))
    if not args.clip_model or not args.retain_prompts:
        raise ValueError(
            "This base has no judge: name one with --judge_name_or_path DIR, or judge by CLIP with --clip_model and --retain_prompts FILE "
            "(and --forget_prompts FILE)."
        )
    forget, retain = args.forget_prompts and read_prompts(args.forget_prompts), read_prompts(args.retain_prompts)
    teacher = Teacher.from_pretrained(args.clip_model, args.clip_pretrained, device)
    known = [*(forget or []), *retain]
    spec = make_spec(
        concepts, known, teacher.encode_text, forget_prompts=forget, retain_prompts=None if forget is None else retain, num_retain_prompts=len(known)
    )
    return TeacherExamination(teacher, spec)


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, complete or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
