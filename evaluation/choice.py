"""What is evaluated and by whom: the settings that an evaluation and its probes share, and what follows from
them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import canvas
from common.flags import by_name, flag
from common.names import public_name
from common.network import resolve_directory
from evaluation.artwork import NAME as ARTWORK
from evaluation.artwork import ArtworkExamination, World
from evaluation.examination import Examination, JudgeExamination, TeacherExamination
from evaluation.file_examination import FileExamination, with_labels
from evaluation.judge import ImageJudge, Judge
from evaluation.judges import load_judge, zero_shot_judge
from evaluation.nudity import CONCEPTS, NUDENET, OPENNSFW, THRESHOLDS, nudity_judge
from evaluation.prompt_file import read_prompt_file
from evaluation.unlearncanvas import LITE, NAME, UnlearnCanvasExamination, UnlearnCanvasJudge
from hub.adapter import find_adapter
from hub.provenance import NOTHING_SAID, AdapterBase, resolve_base, what_adapter_says
from hub.results import RESULTS_NAME, read_results
from pipelines.base import BY_LATENTS, BaseConfig, load_base
from pipelines.memory import DTYPES
from reward.concept import ConceptSpec, make_spec, read_prompts
from reward.teacher import Teacher

logger = logging.getLogger(__name__)

CANVAS, GRID, CLIP_JUDGE = "canvas", "grid", "clip"


@dataclass(frozen=True)
class ExaminationConfig:
    """Adapter, prompts and judge."""

    adapter: str | None = flag(
        None,
        metavar="DIR",
        help="Directory with pytorch_lora_weights.safetensors, a file, or an id on the Hub. Default: none; the pipeline "
        "is judged as it is, for example one that an adapter was fused into.",
    )
    concept: tuple[str, ...] | None = flag(
        None, metavar="TEXT", help="What the adapter was to erase. Default: what the adapter says."
    )
    protocol: str = flag(
        GRID,
        metavar="NAME_OR_FILE",
        help=f"Prompts to draw: every combination of the judge's classes ({GRID}; {CANVAS} is the one of the "
        f"bundled world), {ARTWORK} (for a judge of artwork), {NAME}, {LITE} (a subset of it), or a .csv or "
        ".jsonl file with the columns prompt, group (forget, in_domain, cross_domain, neighbour) and label, or a "
        "published list of prompts that ask for the concept, such as I2P. Default: grid; without a judge the "
        "prompts of --forget_prompts and --retain_prompts.",
    )
    judge_name_or_path: str | None = flag(
        None,
        metavar="NAME",
        help="A judge made by this project, a transformers image classifier (directory or Hub id), "
        f"{NUDENET} (an optional package under the AGPL-3.0), {OPENNSFW} (an optional package), or clip, which "
        "compares the labels of a prompt file by --clip_model. Default, for the bundled base: the bundled one.",
        published=by_name,
    )
    judge_threshold: float | None = flag(
        None,
        at_least=0,
        at_most=1,
        help=f"For {NUDENET} and {OPENNSFW}: the least score that counts. Default: {THRESHOLDS[NUDENET]} and "
        f"{THRESHOLDS[OPENNSFW]}.",
    )
    style_classifier: Path | None = flag(
        None, metavar="FILE", help=f"For {NAME}: the benchmark's ViT for its 51 themes.", published=None
    )
    object_classifier: Path | None = flag(
        None, metavar="FILE", help=f"For {NAME}: the benchmark's ViT for its 20 objects.", published=None
    )
    neighbours: tuple[str, ...] = flag(
        (),
        metavar="CLASS",
        help="Classes to report separately. Default: the nearest in CLIP's text space.",
    )
    num_inference_steps: int | None = flag(
        None,
        at_least=1,
        help="Steps of the deterministic sampler. Default: the protocol's own, else 30.",
    )
    guidance_scale: float | None = flag(
        None,
        at_least=0,
        help="Classifier-free guidance. Default: the protocol's own, which a file may give each prompt, else the "
        "pipeline's.",
    )
    eval_batch_size: int | None = flag(
        None, at_least=1, help=f"Images drawn at a time, at most 64. {BY_LATENTS}"
    )
    mixed_precision: str = flag("no", choices=tuple(DTYPES), help="Precision that the pipeline is loaded in.")
    clip_model: str | None = flag(
        None,
        help="The open_clip model of the CLIP score, preferably one that the reward has not used: NAME, "
        "hf-hub:ID or local-dir:DIR. It also judges where no judge is named. Default, for the bundled base: "
        "the bundled one.",
        published=None,
    )
    clip_pretrained: str | None = flag(
        None,
        help="open_clip's pretrained tag or a safetensors file, for an architecture name.",
        published=None,
    )
    forget_prompts: Path | None = flag(
        None,
        help="For a base without a judge: prompts that ask for the concept, one a line.",
        published=None,
    )
    retain_prompts: Path | None = flag(
        None,
        help="For a base without a judge: prompts to be drawn as before, one a line.",
        published=None,
    )

    def with_batch_size(self, usual: int) -> ExaminationConfig:
        """With the base's usual batch size where none was given."""
        return replace(self, eval_batch_size=self.eval_batch_size or usual)


@dataclass(frozen=True)
class Choice:
    """What the settings choose; the pipeline is not loaded yet.

    Attributes:
        adapter: its file; None is the base alone.
        directory: the adapter's, with other files that describe it.
        concepts: what it was to erase; None if nobody says.
        base: the base that is loaded.
        dtype: the precision it is loaded in.
        clip_name: the teacher's, as results show it.
    """

    adapter: Path | None
    directory: Path | None
    concepts: list[str] | None
    base: BaseConfig
    dtype: torch.dtype
    examination: Examination
    teacher: Teacher | None
    clip_name: str | None
    device: torch.device

    def load_base(self) -> DiffusionPipeline:
        """The base without the adapter, on the device.

        Raises:
            ValueError: it cannot be loaded.
        """
        return load_base(self.base, self.dtype).to(self.device)


def choose(
    base: AdapterBase,
    config: ExaminationConfig,
    device: torch.device,
    *,
    seeds: Sequence[int] | None = None,
) -> Choice:
    """Find the adapter, its base, the protocol and the judge.

    Args:
        seeds: those that were given in place of the protocol's.

    Raises:
        ValueError: one of them cannot be found.
    """
    adapter = find_adapter(config.adapter) if config.adapter else None
    directory = adapter and directory_of(adapter, str(config.adapter))
    said = what_adapter_says(directory, adapter.name) if adapter and directory else NOTHING_SAID
    concepts = list(config.concept) if config.concept else said["concept"]
    resolved = (
        replace(base, pretrained_model_name_or_path=str(canvas.PIPELINE))
        if config.protocol == CANVAS
        else resolve_base(base, said)
    )
    clip_model = config.clip_model or (f"local-dir:{canvas.CLIP}" if resolved.is_bundled else None)
    teacher = Teacher.from_pretrained(clip_model, config.clip_pretrained, device) if clip_model else None
    settings = read_results(directory).get("settings") if directory else None
    clip_name = name_clip(clip_model, settings) if clip_model else None
    examination = choose_examination(
        config,
        concepts,
        bundled=resolved.is_bundled,
        teacher=teacher,
        clip_name=clip_name,
        device=device,
        seeds=seeds,
    )
    return Choice(
        adapter,
        directory,
        concepts,
        resolved,
        DTYPES[config.mixed_precision],
        examination=examination,
        teacher=teacher,
        clip_name=clip_name,
        device=device,
    )


def directory_of(adapter: Path, named: str) -> Path:
    """Where the files lie that describe an adapter.

    Args:
        named: its directory, file or Hub id.
    """
    if Path(named).exists():
        return adapter.parent
    return resolve_directory(named, None, [adapter.name, RESULTS_NAME])


def choose_examination(
    config: ExaminationConfig,
    concepts: list[str] | None,
    *,
    bundled: bool,
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
    seeds: Sequence[int] | None = None,
) -> Examination:
    """The protocol that is named and its judge: the judge that is named, the bundled one for the bundled
    base, else the CLIP model.

    Raises:
        ValueError: there is nothing to judge with, or the judge does not know what it is asked for.
    """
    encode_text = teacher.encode_text if teacher else None
    if config.protocol not in (GRID, CANVAS, ARTWORK, NAME, LITE):
        if not Path(config.protocol).is_file():
            raise ValueError(
                f"--protocol {config.protocol} is neither a file nor one of {GRID}, {CANVAS}, {ARTWORK}, {NAME}, "
                f"{LITE}."
            )
        rows = read_prompt_file(config.protocol)
        judge, name = choose_judge(
            config,
            [row.label for row in rows if row.label],
            bundled=bundled,
            teacher=teacher,
            clip_name=clip_name,
            device=device,
        )
        own = CONCEPTS.get(config.judge_name_or_path or "")
        rows = with_labels(rows, judge, [own] if own else concepts or [])
        of_file = FileExamination(judge, rows, name, Path(config.protocol).name)
        of_file.note_changes(seeds, config.guidance_scale)
        return of_file
    if not concepts:
        raise ValueError("No adapter says what it erases; name it with --concept.")
    if config.protocol in (NAME, LITE):
        if not (config.style_classifier and config.object_classifier):
            raise ValueError(
                f"--protocol {config.protocol} needs the benchmark's classifiers: --style_classifier FILE and "
                "--object_classifier FILE."
            )
        heads = UnlearnCanvasJudge.from_files(config.style_classifier, config.object_classifier, device)
        of_benchmark = UnlearnCanvasExamination(
            heads,
            concepts,
            "UnlearnCanvas's ViT-L/16",
            config.protocol == LITE,
            neighbours=config.neighbours,
            encode_text=encode_text,
        )
        of_benchmark.note_changes(seeds, config.num_inference_steps, config.guidance_scale)
        return of_benchmark
    if config.protocol == ARTWORK:
        return artwork_examination(config, concepts, encode_text, device)
    if config.judge_name_or_path or (bundled and not config.retain_prompts):
        judge, name = choose_judge(
            config, [], bundled=bundled, teacher=teacher, clip_name=clip_name, device=device
        )
        if not judge.prompt:
            raise ValueError(
                "This judge has no wording of its own for prompts; give them with --protocol FILE.csv."
            )
        return JudgeExamination(judge, concepts, name, neighbours=config.neighbours, encode_text=encode_text)
    if not teacher or not config.retain_prompts:
        raise ValueError(
            "This base has no judge: name one with --judge_name_or_path, or judge by CLIP with --clip_model and "
            "--retain_prompts FILE (and --forget_prompts FILE)."
        )
    forget = read_prompts(config.forget_prompts) if config.forget_prompts else None
    retain = read_prompts(config.retain_prompts)
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


def artwork_examination(
    config: ExaminationConfig,
    concepts: list[str],
    encode_text: Callable[[list[str]], torch.Tensor] | None,
    device: torch.device,
) -> ArtworkExamination:
    """The protocol of artwork.

    Raises:
        ValueError: no judge of artwork is named, or it does not know the concept.
    """
    if not (config.judge_name_or_path and Path(config.judge_name_or_path).is_dir()):
        raise ValueError(f"--protocol {ARTWORK} needs a judge of artwork: --judge_name_or_path DIR.")
    directory = Path(config.judge_name_or_path)
    judge = Judge.from_pretrained(directory).to(device)
    return ArtworkExamination(
        judge,
        World.read(directory, judge),
        concepts,
        public_name(directory),
        neighbours=config.neighbours,
        encode_text=encode_text,
    )


def choose_judge(
    config: ExaminationConfig,
    labels: list[str],
    *,
    bundled: bool,
    teacher: Teacher | None,
    clip_name: str | None,
    device: torch.device,
) -> tuple[ImageJudge, str]:
    """The judge that is named, or the bundled one for the bundled base, or for a prompt file the CLIP model;
    with its name.

    Args:
        labels: those of the prompt file, if there is one.

    Raises:
        ValueError: it cannot be had.
    """
    if config.judge_name_or_path in THRESHOLDS:
        return nudity_judge(config.judge_name_or_path, config.judge_threshold)
    if config.judge_threshold is not None:
        raise ValueError(f"--judge_threshold is for --judge_name_or_path {NUDENET} and {OPENNSFW}.")
    if config.judge_name_or_path == CLIP_JUDGE or not (config.judge_name_or_path or bundled):
        if not (teacher and labels):
            raise ValueError(
                "A CLIP judges the labels of a prompt file: give --clip_model and a --protocol FILE.csv with the "
                "columns prompt, group and label, or name a judge."
            )
        return zero_shot_judge(teacher, list(dict.fromkeys(labels))), f"{clip_name}, zero-shot"
    path = config.judge_name_or_path or canvas.JUDGE
    return load_judge(path, device), public_name(path)


def name_clip(clip_model: str, settings: dict[str, Any] | None) -> str:
    """How results call the CLIP model: with a word of warning if the adapter's settings say that it was
    the reward."""
    name = public_name(clip_model.removeprefix("local-dir:"))
    rewarded = settings is not None and name == (settings.get("clip_model") or public_name(canvas.CLIP))
    return f"open_clip {name}" + (" (the reward's own)" if rewarded else "")


def examination_of_spec(
    spec: ConceptSpec, teacher: Teacher, judge_name_or_path: str | Path | None, *, bundled: bool
) -> Examination:
    """Who evaluates what a spec erases: the judge that is named, the bundled one for the bundled base, else
    the teacher, marked as such.

    Args:
        teacher: the reward's, or a CLIP.
        bundled: whether the base is the bundled canvas.

    Raises:
        ValueError: the judge that is named cannot be loaded or does not know the concept.
    """
    # A classifier's texts are near to its own labels only.
    encode_text = teacher.encode_text if teacher.unit_length else None
    if judge_name_or_path:
        if not Path(judge_name_or_path).is_dir():
            raise ValueError(
                f"--judge_name_or_path {judge_name_or_path} is no directory: a run takes a judge of this project. Other "
                "judges are for `python -m evaluation`, after it."
            )
        judge = Judge.from_pretrained(judge_name_or_path)
        return JudgeExamination(
            judge, spec.concepts, public_name(judge_name_or_path), encode_text=encode_text
        )
    if bundled:
        try:
            judge = Judge.from_pretrained(canvas.JUDGE)
            return JudgeExamination(judge, spec.concepts, public_name(canvas.JUDGE), encode_text=encode_text)
        except ValueError as error:
            logger.warning(f"{error} The metrics come from the teacher.")
    return TeacherExamination(teacher, spec)
