"""The flags that say what is to be erased, and the spec they make."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reward.margin import Exemplars
from reward.spec import ConceptSpec, make_spec, read_prompts, read_spec
from reward.spec.concept import clean_concepts
from reward.spec.exemplars import name_images, read_images
from reward.spec.vocabulary import KINDS
from reward.teacher import Teacher


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_concept_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is to be erased, and how that is judged: those that `resolve_spec` reads."""
    parser.add_argument(
        "--concept", nargs="+", metavar="TEXT", help='What to erase, for example "Van Gogh style"; several texts erase several concepts.'
    )
    parser.add_argument(
        "--concept_kind", choices=KINDS, help="What the concepts are. Default: told from their wording and their neighbours in CLIP's text space."
    )
    parser.add_argument("--concept_images", type=Path, metavar="DIR", help="Images that show the concept; they join --concept or stand in for it.")
    parser.add_argument("--reward_spec", type=Path, metavar="FILE", help="YAML as `python -m reward.spec` prints it, or a prompt file of LECO.")
    parser.add_argument("--forget_prompts", type=Path, help="Prompts that ask for the concept, one a line. Default: made from the concept.")
    parser.add_argument(
        "--retain_prompts", type=Path, help="Prompts to go on drawing as before, one a line. Default: chosen from the reward's prompts."
    )
    parser.add_argument(
        "--anchor_prompts", type=Path, help="Texts the concept may turn into, one a line. Default: each forget prompt's nearest retain prompts."
    )
    parser.add_argument(
        "--num_retain_prompts", type=positive_int, default=128, help="Retain prompts chosen at most: half the concept's neighbours, half diverse."
    )
    parser.add_argument(
        "--reward_model_name_or_path", help="Reward predictor made by `python -m reward.train` for this base. Default: the bundled one."
    )
    parser.add_argument("--clip_model", help="Teacher of the reward: an open_clip name, hf-hub:ID or local-dir:DIR. Default: the bundled one.")
    parser.add_argument("--clip_pretrained", help="open_clip's pretrained tag or a safetensors file, when --clip_model is an architecture name.")


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
    if not (args.concept or args.reward_spec or args.concept_images):
        raise ValueError('Nothing says what to erase; name it, for example --concept "Van Gogh style", or show it with --concept_images DIR.')
    concept = clean_concepts(args.concept) if args.concept else None
    forget, retain, anchors = (read_prompts(path) if path else None for path in lists.values())
    spec = read_spec(args.reward_spec) if args.reward_spec else None
    return Given(concept, forget, retain, anchors, spec, read_images(args.concept_images) if args.concept_images else None)


def resolve_spec(args: argparse.Namespace, given: Given, teacher: Teacher, known_prompts: list[str]) -> tuple[ConceptSpec, Exemplars | None]:
    """The spec that was given, or the one made from the concept; and the concept's images, if there are any.

    Raises:
        ValueError: no spec can be made of it; the message says what to give.
    """
    embeddings = teacher.encode_pictures(given.images) if given.images else None
    named = given.concept or (given.spec and given.spec.concepts)
    exemplars = None if embeddings is None else Exemplars.from_images(embeddings, text_share=0.5 if named else 0.0)
    if given.spec is not None:
        return given.spec, exemplars
    if not named:
        assert embeddings is not None
        named = [args.concept_images.name] if given.forget else [name_images(embeddings, known_prompts, teacher.encode_text)]
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
