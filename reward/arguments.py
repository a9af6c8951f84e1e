"""The flags that say what is to be erased, and the spec they make."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import canvas
from common.command_line import positive_int
from reward.classifier import ClassifierTeacher
from reward.concept import ConceptSpec, make_spec, read_prompts, read_spec
from reward.concept.exemplars import name_images, read_images
from reward.concept.spec import clean_concepts
from reward.concept.vocabulary import KINDS, plain_name
from reward.margin import Exemplars
from reward.teacher import Teacher


def add_concept_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is to be erased, and how that is judged: those that `resolve_spec`
    reads."""
    parser.add_argument(
        "--concept",
        nargs="+",
        metavar="TEXT",
        help='What to erase, for example "Van Gogh style"; several texts erase several concepts.',
    )
    parser.add_argument(
        "--concept_kind",
        choices=KINDS,
        help="What the concepts are. Default: told from their wording and their neighbours in CLIP's text space.",
    )
    parser.add_argument(
        "--concept_images",
        type=Path,
        metavar="DIR",
        help="Images that show the concept; they join --concept or stand in for it.",
    )
    parser.add_argument(
        "--reward_spec",
        type=Path,
        metavar="FILE",
        help="YAML as `python -m reward.concept` prints it, or a prompt file of LECO.",
    )
    parser.add_argument(
        "--forget_prompts",
        type=Path,
        help="Prompts that ask for the concept, one a line. Default: made from the concept.",
    )
    parser.add_argument(
        "--retain_prompts",
        type=Path,
        help="Prompts to go on drawing as before, one a line. Default: chosen from the reward's prompts.",
    )
    parser.add_argument(
        "--anchor_prompts",
        type=Path,
        help="Texts the concept may turn into, one a line. Default: each forget prompt's nearest retain prompts.",
    )
    parser.add_argument(
        "--num_retain_prompts",
        type=positive_int,
        default=128,
        help="Retain prompts chosen at most: half the concept's neighbours, half diverse.",
    )
    parser.add_argument(
        "--reward_model_name_or_path",
        help="Reward predictor made by `python -m reward.train` for this base. Default: the bundled one.",
    )
    parser.add_argument(
        "--reward_type",
        choices=["clip", "classifier"],
        default="clip",
        help="Who says what an image shows: a CLIP, or an image classifier.",
    )
    parser.add_argument(
        "--classifier_name_or_path",
        help="For --reward_type classifier: a transformers image classifier, directory or Hub id.",
    )
    parser.add_argument(
        "--target_label",
        help="For --reward_type classifier: the label to be forgotten. Default: the concept's own name.",
    )
    parser.add_argument(
        "--clip_model",
        help="Teacher of the reward: an open_clip name, hf-hub:ID or local-dir:DIR. Default: the bundled one.",
    )
    parser.add_argument(
        "--clip_pretrained",
        help="open_clip's pretrained tag or a safetensors file, when --clip_model is an architecture name.",
    )


@dataclass(frozen=True)
class Given:
    """What the user gave in files, read and checked; None where a flag was left out."""

    concept: list[str] | None
    forget: list[str] | None
    retain: list[str] | None
    anchors: list[str] | None
    spec: ConceptSpec | None
    images: list[Image.Image] | None

    def texts(self) -> list[str]:
        """Everything that will be a prompt."""
        lists = [self.concept, self.forget, self.retain, self.anchors]
        if self.spec is not None:
            lists += [self.spec.forget_prompts, self.spec.retain_prompts, *self.spec.anchors]
        return [text for texts in lists for text in texts or []]


def read_given(args: argparse.Namespace) -> Given:
    """Read what `add_concept_arguments` names.

    Raises:
        ValueError: nothing says what to erase, two flags say it differently, or a file cannot be read.
    """
    lists = {name: getattr(args, f"{name}_prompts") for name in ("forget", "retain", "anchor")}
    if args.reward_spec and (args.concept or args.concept_kind or any(lists.values())):
        raise ValueError(
            "--reward_spec holds concepts and prompts already; leave --concept, --concept_kind and the prompt files out, or edit the spec."
        )
    if args.reward_type == "classifier" and not args.classifier_name_or_path:
        raise ValueError(
            "--reward_type classifier needs --classifier_name_or_path, a transformers image classifier."
        )
    if args.reward_type == "clip" and (args.classifier_name_or_path or args.target_label):
        raise ValueError("--classifier_name_or_path and --target_label need --reward_type classifier.")
    if args.reward_type == "classifier" and args.concept_images:
        raise ValueError(
            "--concept_images are compared in a CLIP's space; leave --reward_type classifier out."
        )
    if not (args.concept or args.reward_spec or args.concept_images or args.target_label):
        raise ValueError(
            'Nothing says what to erase; name it, for example --concept "Van Gogh style", or show it with --concept_images DIR.'
        )
    named = args.concept or ([args.target_label] if args.target_label and not args.reward_spec else None)
    concept = clean_concepts(named) if named else None
    forget, retain, anchors = (read_prompts(path) if path else None for path in lists.values())
    spec = read_spec(args.reward_spec) if args.reward_spec else None
    return Given(
        concept,
        forget,
        retain,
        anchors,
        spec,
        read_images(args.concept_images) if args.concept_images else None,
    )


def resolve_spec(
    args: argparse.Namespace, given: Given, teacher: Teacher, known_prompts: list[str]
) -> tuple[ConceptSpec, Exemplars | None]:
    """The spec that was given, or the one made from the concept; and the concept's images, if there are any.

    Raises:
        ValueError: no spec can be made of it; the message says what to give.
    """
    embeddings = teacher.encode_pictures(given.images) if given.images else None
    named = given.concept or (given.spec and given.spec.concepts)
    exemplars = (
        None if embeddings is None else Exemplars.from_images(embeddings, text_share=0.5 if named else 0.0)
    )
    if given.spec is not None:
        return given.spec, exemplars
    if not named:
        assert embeddings is not None
        named = (
            [args.concept_images.name]
            if given.forget
            else [name_images(embeddings, known_prompts, teacher.encode_text)]
        )
    spec = make_spec(
        named,
        known_prompts,
        teacher.encode_text,
        forget_prompts=given.forget,
        retain_prompts=given.retain,
        anchor_prompts=given.anchors,
        kind=args.concept_kind,
        num_retain_prompts=args.num_retain_prompts,
    )
    return spec, exemplars


def load_teachers(
    args: argparse.Namespace, given: Given, device: torch.device | str = "cpu"
) -> tuple[Teacher, Teacher]:
    """Who judges images for the reward, and who judges which texts are near to one another: one CLIP, or a
    classifier and, if there is one, a CLIP.

    Raises:
        ValueError: one of them cannot be had; the message says what to give instead.
    """
    bundled = uses_bundled_base(args)
    clip_model = args.clip_model or (f"local-dir:{canvas.CLIP}" if bundled else None)
    clip = Teacher.from_pretrained(clip_model, args.clip_pretrained, device) if clip_model else None
    if args.reward_type == "clip":
        if clip is None:
            raise ValueError(
                "This base needs a teacher: name an open_clip model with --clip_model (and --clip_pretrained)."
            )
        return clip, clip
    named = given.concept or (given.spec.concepts if given.spec else [])
    classifier = ClassifierTeacher.from_pretrained(
        args.classifier_name_or_path, args.target_label or plain_name(named[0]), device
    )
    return classifier, clip or classifier


def uses_bundled_base(args: argparse.Namespace) -> bool:
    """Whether the base is the bundled canvas."""
    name = getattr(args, "pretrained_model_name_or_path", None)
    return name is None or Path(name).resolve() == canvas.PIPELINE.resolve()
