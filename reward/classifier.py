"""An image classifier in the teacher's place: what it sees of a concept is the reward.

An image's vector is its centred logits, which unlike probabilities do not saturate; a text's vector reads
off them what the text asks for: the label it names or, if it names none, anything but the target.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from common.hub_reasons import LOAD_ERRORS, why_not_loaded
from common.weights import check_floats, check_loaded, check_values, quiet_loaders, weight_files
from reward.concept.words import words
from reward.teacher import Teacher

LOGIT_SCALE = 0.1
"""Brings logits to the order of cosines."""


class ClassifierTeacher(Teacher):
    """Centred logits of a transformers image classifier, and the labels that texts name; float32.

    Attributes:
        labels: K names, in the order of the logits.
        target: the label of what is to be forgotten; None while a predictor is distilled, which knows no
            concept.
    """

    unit_length = False

    def __init__(self, model: PreTrainedModel, preprocess: Compose, target: str | None, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.name = name
        names = model.config.id2label
        self.labels = [str(names[i]) for i in range(len(names))]
        self.target = target and find_label(target, self.labels)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, target: str | None = None, device: torch.device | str = "cpu"
    ) -> ClassifierTeacher:
        """Load a directory or Hub id of a transformers image classifier (timm's come through transformers),
        safetensors only.

        Raises:
            ValueError: there is no such classifier, or it does not know the label; its labels are listed,
                nearest first.
        """
        try:
            with quiet_loaders():
                model, info = AutoModelForImageClassification.from_pretrained(
                    name_or_path,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                )
            check_loaded("it", info)
            check_floats("it", weight_files(name_or_path), model)
            check_values("it", model.state_dict())
            processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
            preprocess = preprocessing(processor)
        except LOAD_ERRORS as error:
            raise ValueError(
                f"The classifier {name_or_path} could not be loaded (transformers, safetensors): "
                f"{why_not_loaded(error)}"
            ) from error
        return cls(model.float().to(device), preprocess, target, name_or_path)

    def identity(self) -> dict[str, Any]:
        """Its labels, in their order."""
        return {"labels": self.labels}

    def encode_text(self, texts: list[str], batch_size: int = 256) -> torch.Tensor:
        """N texts -> (N, K)."""
        rows = [
            self._row(named) if (named := self.named_in(text)) else -self._row(self.target) for text in texts
        ]
        return torch.stack(rows).to(self.device)

    def encode_targets(self, texts: list[str]) -> torch.Tensor:
        """N prompts that ask for the concept, in whatever words -> (N, K)."""
        return self._row(self.target).repeat(len(texts), 1).to(self.device)

    def named_in(self, text: str) -> str | None:
        """The label with the most words of which all stand in the text."""
        found = [
            label for label in self.labels if set(words(label)) and set(words(label)) <= set(words(text))
        ]
        return max(found, key=lambda label: len(words(label)), default=None)

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, K)."""
        chunks = pixels.to(self.device).split(batch_size)
        logits = torch.cat(
            [
                self.model(pixel_values=self.preprocess((c.clamp(-1, 1) + 1) / 2)).logits.float()
                for c in chunks
            ]
        )
        return LOGIT_SCALE * (logits - logits.mean(dim=1, keepdim=True))

    def _row(self, label: str | None) -> torch.Tensor:
        if label is None:
            return torch.zeros(len(self.labels))
        return torch.nn.functional.one_hot(torch.tensor(self.labels.index(label)), len(self.labels)).float()


def find_label(wanted: str, labels: list[str]) -> str:
    """The label that is meant, whatever its case.

    Raises:
        ValueError: there is none of that name; the labels are listed, nearest first.
    """
    for label in labels:
        if label.casefold() == wanted.casefold().strip():
            return label
    ranked = sorted(
        labels, key=lambda label: -difflib.SequenceMatcher(None, wanted.casefold(), label.casefold()).ratio()
    )
    shown = ", ".join(ranked[:20]) + (f" and {len(ranked) - 20} more" if len(ranked) > 20 else "")
    raise ValueError(f"The classifier has no label {wanted!r}; its labels are, nearest first: {shown}.")


def preprocessing(processor: Any) -> Compose:
    """What an image processor does to an image, for tensors in [0, 1].

    Raises:
        AttributeError: the processor says neither size nor mean and standard deviation.
    """
    data = getattr(processor, "data_config", None)
    if data is not None:  # timm's
        size, mean, std = tuple(data["input_size"][-2:]), data["mean"], data["std"]
        return Compose([Resize(size, InterpolationMode.BICUBIC, antialias=True), Normalize(mean, std)])
    steps: list[torch.nn.Module] = []
    if getattr(processor, "do_resize", True):
        wanted = dict(processor.size)
        side = wanted.get("shortest_edge") or (wanted["height"], wanted["width"])
        steps.append(Resize(side, InterpolationMode.BICUBIC, antialias=True))
    if getattr(processor, "do_center_crop", False):
        crop = dict(processor.crop_size)
        steps.append(CenterCrop((crop["height"], crop["width"])))
    if getattr(processor, "do_normalize", True):
        steps.append(Normalize(processor.image_mean, processor.image_std))
    return Compose(steps)
