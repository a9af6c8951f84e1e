"""The flags that say what is to be erased, and the spec they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import canvas
from common.flags import by_name, flag
from common.names import public_name
from reward.classifier import ClassifierTeacher
from reward.concept import ConceptSpec, make_spec, read_prompts, read_spec
from reward.concept.exemplars import name_images, read_images
from reward.concept.spec import clean_concepts
from reward.concept.vocabulary import KINDS, plain_name
from reward.margin import Exemplars
from reward.teacher import Teacher


def _teacher_name(name: str | None) -> str | None:
    """A teacher by its public name, without saying that it is a directory."""
    return None if name is None else public_name(name.removeprefix("local-dir:"))


@dataclass(frozen=True)
class ConceptConfig:
    """What to erase."""

    concept: tuple[str, ...] | None = flag(
        None,
        metavar="TEXT",
        help='What to erase, for example "Van Gogh style"; several texts erase several concepts.',
    )
    concept_kind: str | None = flag(
        None,
        choices=tuple(KINDS),
        help="What the concepts are. Default: told from their wording and their neighbours in CLIP's text space.",
    )
    concept_images: Path | None = flag(
        None,
        metavar="DIR",
        help="Images that show the concept; they join --concept or stand in for it.",
        published=None,
    )
    reward_spec: Path | None = flag(
        None,
        metavar="FILE",
        help="YAML as `python -m reward.concept` prints it, or a prompt file of LECO.",
        published=None,
    )
    forget_prompts: Path | None = flag(
        None,
        help="Prompts that ask for the concept, one a line. Default: made from the concept.",
        published=None,
    )
    retain_prompts: Path | None = flag(
        None,
        help="Prompts to go on drawing as before, one a line. Default: chosen from the reward's prompts.",
        published=None,
    )
    anchor_prompts: Path | None = flag(
        None,
        help="Texts the concept may turn into, one a line. Default: each forget prompt's nearest retain prompts.",
        published=None,
    )
    num_anchors: int = flag(
        1,
        at_least=1,
        help="How many of a prompt's anchors, from the first, its image may become: the nearest of them, in the "
        "teacher's eyes. With several the adapter may draw their mean.",
    )
    num_retain_prompts: int = flag(
        128,
        at_least=1,
        help="Retain prompts chosen at most: half the concept's neighbours, half diverse.",
    )
    num_vocabulary_prompts: int = flag(
        64,
        at_least=0,
        help="How many prompts with another name in the concept's place are kept too: the base draws each once, and "
        "what shows the concept is left out.",
    )


@dataclass(frozen=True)
class RewardConfig:
    """Reward and teacher."""

    reward_model_name_or_path: str | None = flag(
        None,
        help="Reward predictor made by `python -m reward.train` for this base. Default: the bundled one.",
        published=by_name,
    )
    reward_type: str = flag(
        "clip",
        choices=("clip", "classifier"),
        help="Who says what an image shows: a CLIP, or an image classifier.",
    )
    classifier_name_or_path: str | None = flag(
        None,
        help="For --reward_type classifier: a transformers image classifier, directory or Hub id.",
        published=by_name,
    )
    target_label: str | None = flag(
        None,
        help="For --reward_type classifier: the label to be forgotten. Default: the concept's own name.",
    )
    clip_model: str | None = flag(
        None,
        help="Teacher of the reward: an open_clip name, hf-hub:ID or local-dir:DIR. Default: the bundled one.",
        published=_teacher_name,
    )
    clip_pretrained: str | None = flag(
        None,
        help="open_clip's pretrained tag or a safetensors file, when --clip_model is an architecture name.",
        published=None,
    )

    @property
    def uses_classifier(self) -> bool:
        """Whether an image classifier is the teacher."""
        return self.reward_type == "classifier"


@dataclass(frozen=True)
class ConceptInputs:
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


def read_inputs(concept: ConceptConfig, reward: RewardConfig) -> ConceptInputs:
    """Read the files that settings name.

    Raises:
        ValueError: nothing says what to erase, two flags say it differently, or a file cannot be read.
    """
    lists = (concept.forget_prompts, concept.retain_prompts, concept.anchor_prompts)
    if concept.reward_spec and (concept.concept or concept.concept_kind or any(lists)):
        raise ValueError(
            "--reward_spec holds concepts and prompts already; leave --concept, --concept_kind and the prompt "
            "files out, or edit the spec."
        )
    if reward.uses_classifier and not reward.classifier_name_or_path:
        raise ValueError(
            "--reward_type classifier needs --classifier_name_or_path, a transformers image classifier."
        )
    if not reward.uses_classifier and (reward.classifier_name_or_path or reward.target_label):
        raise ValueError("--classifier_name_or_path and --target_label need --reward_type classifier.")
    if reward.uses_classifier and concept.concept_images:
        raise ValueError(
            "--concept_images are compared in a CLIP's space; leave --reward_type classifier out."
        )
    if not (concept.concept or concept.reward_spec or concept.concept_images or reward.target_label):
        raise ValueError(
            'Nothing says what to erase; name it, for example --concept "Van Gogh style", or show it with '
            "--concept_images DIR."
        )
    named = concept.concept or (
        [reward.target_label] if reward.target_label and not concept.reward_spec else None
    )
    forget, retain, anchors = (read_prompts(path) if path else None for path in lists)
    return ConceptInputs(
        clean_concepts(list(named)) if named else None,
        forget,
        retain,
        anchors,
        spec=read_spec(concept.reward_spec) if concept.reward_spec else None,
        images=read_images(concept.concept_images) if concept.concept_images else None,
    )


def resolve_spec(
    config: ConceptConfig, inputs: ConceptInputs, teacher: Teacher, known_prompts: list[str]
) -> tuple[ConceptSpec, Exemplars | None]:
    """The spec that was given, or the one made from the concept; and the concept's images, if there are any.

    Raises:
        ValueError: no spec can be made of it; the message says what to give.
    """
    embeddings = teacher.encode_pictures(inputs.images) if inputs.images else None
    named = inputs.concept or (inputs.spec and inputs.spec.concepts)
    exemplars = (
        None if embeddings is None else Exemplars.from_images(embeddings, text_share=0.5 if named else 0.0)
    )
    if inputs.spec is not None:
        return inputs.spec, exemplars
    if not named:
        assert embeddings is not None and config.concept_images is not None
        named = (
            [config.concept_images.name]
            if inputs.forget
            else [name_images(embeddings, known_prompts, teacher.encode_text)]
        )
    spec = make_spec(
        named,
        known_prompts,
        teacher.encode_text,
        forget_prompts=inputs.forget,
        retain_prompts=inputs.retain,
        anchor_prompts=inputs.anchors,
        kind=config.concept_kind,
        num_retain_prompts=config.num_retain_prompts,
    )
    return spec, exemplars


def load_teachers(
    config: RewardConfig, inputs: ConceptInputs, bundled: bool, *, device: torch.device | str = "cpu"
) -> tuple[Teacher, Teacher]:
    """Who judges images for the reward, and who judges which texts are near to one another: one CLIP, or a
    classifier and, if there is one, a CLIP.

    Args:
        bundled: whether the base is the bundled canvas, which has a CLIP of its own.

    Raises:
        ValueError: one of them cannot be had; the message says what to give instead.
    """
    clip_model = config.clip_model or (f"local-dir:{canvas.CLIP}" if bundled else None)
    clip = Teacher.from_pretrained(clip_model, config.clip_pretrained, device) if clip_model else None
    if not config.uses_classifier:
        if clip is None:
            raise ValueError(NO_TEACHER)
        return clip, clip
    named = inputs.concept or (inputs.spec.concepts if inputs.spec else [])
    assert config.classifier_name_or_path  # `read_inputs` has refused anything else
    label = config.target_label or plain_name(named[0])
    classifier = ClassifierTeacher.from_pretrained(config.classifier_name_or_path, label, device)
    return classifier, clip or classifier


NO_TEACHER = "This base needs a teacher: name an open_clip model with --clip_model (and --clip_pretrained)."
