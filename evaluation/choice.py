"""What is evaluated, and by whom: the flags that an evaluation and its probes share, and what they come
to."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import canvas
from common.command_line import number, positive_int
from common.names import BUNDLED_PIPELINE, public_name
from common.network import resolve_directory
from evaluation.examination import Examination, JudgeExamination, TeacherExamination
from evaluation.judge import ImageJudge
from evaluation.judges import load_judge, zero_shot_judge
from evaluation.prompt_file import FileExamination, read_prompt_file
from evaluation.unlearncanvas import LITE, NAME, UnlearnCanvasExamination, UnlearnCanvasJudge
from hub.adapter import find_adapter
from hub.provenance import RESULTS_NAME, find_base, read_results, what_adapter_says
from pipelines.base import BY_LATENTS, add_base_arguments, base_options, load_pipeline
from reward.concept import make_spec, read_prompts
from reward.teacher import Teacher

CANVAS, GRID, CLIP_JUDGE = "canvas", "grid", "clip"
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_examination_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the adapter, its base, what is drawn and who judges."""
    parser.add_argument(
        "--adapter",
        required=True,
        metavar="DIR",
        help="Directory with pytorch_lora_weights.safetensors, or an id on the Hub.",
    )
    add_base_arguments(parser, default="what the adapter says")
    parser.add_argument(
        "--mixed_precision",
        choices=list(PRECISIONS),
        default="no",
        help="Precision that the pipeline is loaded in.",
    )
    parser.add_argument(
        "--concept",
        nargs="+",
        metavar="TEXT",
        help="What the adapter was to erase. Default: what the adapter says.",
    )
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
    parser.add_argument(
        "--style_classifier",
        type=Path,
        metavar="FILE",
        help=f"For {NAME}: the benchmark's ViT for its 51 themes.",
    )
    parser.add_argument(
        "--object_classifier",
        type=Path,
        metavar="FILE",
        help=f"For {NAME}: the benchmark's ViT for its 20 objects.",
    )
    parser.add_argument(
        "--neighbours",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="Classes to report apart. Default: the nearest in CLIP's text space.",
    )
    parser.add_argument(
        "--num_inference_steps",
        type=positive_int,
        help="Steps of the deterministic sampler. Default: the protocol's own, else 30.",
    )
    parser.add_argument(
        "--guidance_scale",
        type=number,
        help="Classifier-free guidance. Default: the protocol's own, else the pipeline's.",
    )
    parser.add_argument(
        "--eval_batch_size", type=positive_int, help=f"Images drawn at a time, at most 64. {BY_LATENTS}"
    )
    parser.add_argument(
        "--clip_model",
        help="The open_clip model of the CLIP score, best one that the reward has not seen: NAME, hf-hub:ID or local-dir:DIR. It judges too where no "
        "judge is named. Default, for the bundled base: the bundled one.",
    )
    parser.add_argument(
        "--clip_pretrained",
        help="open_clip's pretrained tag or a safetensors file, for an architecture name.",
    )
    parser.add_argument(
        "--forget_prompts",
        type=Path,
        help="For a base without a judge: prompts that ask for the concept, one a line.",
    )
    parser.add_argument(
        "--retain_prompts",
        type=Path,
        help="For a base without a judge: prompts to be drawn as before, one a line.",
    )


@dataclass(frozen=True)
class Choice:
    """What the flags come to; the pipeline is not loaded yet.

    Attributes:
        adapter: its file.
        directory: where it lies, with whatever else says what it is.
        concepts: what it was to erase; None if nobody says.
        base: as `load_pipeline` takes it.
        revision: of the base on the Hub.
        clip_name: the teacher's, as results show it.
    """

    adapter: Path
    directory: Path
    concepts: list[str] | None
    base: str | Path
    revision: str | None
    examination: Examination
    teacher: Teacher | None
    clip_name: str | None
    device: torch.device

    def load_base(self, args: argparse.Namespace) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """The base without the adapter, on the device.

        Raises:
            ValueError: it cannot be loaded.
        """
        return load_pipeline(
            self.base, self.revision, dtype=PRECISIONS[args.mixed_precision], **base_options(args)
        ).to(self.device)


def choose(args: argparse.Namespace, device: torch.device) -> Choice:
    """Find the adapter, its base, the protocol and the judge.

    Raises:
        ValueError: one of them cannot be had.
    """
    adapter = find_adapter(args.adapter)
    directory = (
        adapter.parent
        if Path(args.adapter).is_dir()
        else resolve_directory(args.adapter, None, [adapter.name, RESULTS_NAME])
    )
    said = what_adapter_says(directory)
    concepts = args.concept or said["concept"]
    base = (
        canvas.PIPELINE
        if args.protocol == CANVAS
        else find_base(args.pretrained_model_name_or_path, said["base"])
    )
    bundled = public_name(base) == BUNDLED_PIPELINE
    clip_model = args.clip_model or (f"local-dir:{canvas.CLIP}" if bundled else None)
    teacher = Teacher.from_pretrained(clip_model, args.clip_pretrained, device) if clip_model else None
    clip_name = name_clip(clip_model, read_results(directory).get("settings")) if clip_model else None
    examination = choose_examination(args, concepts, bundled, teacher, clip_name, device)
    revision = args.revision or (None if args.pretrained_model_name_or_path else said["revision"])
    return Choice(adapter, directory, concepts, base, revision, examination, teacher, clip_name, device)


def choose_examination(
    args: argparse.Namespace,
    concepts: list[str] | None,
    bundled: bool,
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
) -> Examination:
    """The protocol that is named and its judge: the judge that is named, the bundled one for the bundled
    base, else the CLIP model.

    Raises:
        ValueError: there is nothing to judge with, or the judge does not know what it is asked for.
    """
    encode_text = teacher.encode_text if teacher else None
    if args.protocol not in (GRID, CANVAS, NAME, LITE):
        if not Path(args.protocol).is_file():
            raise ValueError(
                f"--protocol {args.protocol} is neither a file nor one of {GRID}, {CANVAS}, {NAME}, {LITE}."
            )
        rows = read_prompt_file(args.protocol)
        judge, name = choose_judge(args, bundled, [row.label for row in rows], teacher, clip_name, device)
        return FileExamination(judge, rows, name, Path(args.protocol).name)
    if not concepts:
        raise ValueError("The adapter does not say what it erases; name it with --concept.")
    if args.protocol in (NAME, LITE):
        if not (args.style_classifier and args.object_classifier):
            raise ValueError(
                f"--protocol {args.protocol} needs the benchmark's classifiers: --style_classifier FILE and --object_classifier FILE."
            )
        heads = UnlearnCanvasJudge.from_files(args.style_classifier, args.object_classifier, device)
        of_benchmark = UnlearnCanvasExamination(
            heads,
            concepts,
            "UnlearnCanvas's ViT-L/16",
            args.protocol == LITE,
            neighbours=args.neighbours,
            encode_text=encode_text,
        )
        of_benchmark.note_changes(args.seeds, args.num_inference_steps, args.guidance_scale)
        return of_benchmark
    if args.judge_name_or_path or (bundled and not args.retain_prompts):
        judge, name = choose_judge(args, bundled, [], teacher, clip_name, device)
        if not judge.prompt:
            raise ValueError(
                "This judge has no wording of its own for prompts; give them with --protocol FILE.csv."
            )
        return JudgeExamination(judge, concepts, name, args.neighbours, encode_text)
    if not teacher or not args.retain_prompts:
        raise ValueError(
            "This base has no judge: name one with --judge_name_or_path, or judge by CLIP with --clip_model and --retain_prompts FILE "
            "(and --forget_prompts FILE)."
        )
    forget, retain = (
        args.forget_prompts and read_prompts(args.forget_prompts),
        read_prompts(args.retain_prompts),
    )
    known = [*(forget or []), *retain]
    spec = make_spec(
        concepts,
        known,
        teacher.encode_text,
        forget_prompts=forget,
        retain_prompts=None if forget is None else retain,
        num_retain_prompts=len(known),
    )
    return TeacherExamination(teacher, spec)


def choose_judge(
    args: argparse.Namespace,
    bundled: bool,
    labels: list[str],
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
) -> tuple[ImageJudge, str]:
    """The judge that is named, or the bundled one for the bundled base, or for a prompt file the CLIP model;
    with its name.

    Raises:
        ValueError: it cannot be had.
    """
    if args.judge_name_or_path == CLIP_JUDGE or not (args.judge_name_or_path or bundled):
        if not (teacher and labels):
            raise ValueError(
                "A CLIP judges the labels of a prompt file: give --clip_model and --protocol FILE.csv, or name a judge."
            )
        return zero_shot_judge(teacher, list(dict.fromkeys(labels))), f"{clip_name}, zero-shot"
    path = args.judge_name_or_path or canvas.JUDGE
    return load_judge(path, device), public_name(path)


def name_clip(clip_model: str, settings: dict[str, Any] | None) -> str:
    """How results call the CLIP model: with a word of warning if the adapter's settings say that it was
    the reward."""
    name = public_name(clip_model.removeprefix("local-dir:"))
    rewarded = settings is not None and name == (settings.get("clip_model") or public_name(canvas.CLIP))
    return f"open_clip {name}" + (" (the reward's own)" if rewarded else "")
