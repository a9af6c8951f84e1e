"""The benchmark UnlearnCanvas: its themes, objects, prompts, settings and classifiers.

Zhang et al., 2024, https://arxiv.org/abs/2402.11846; the lists and settings are those of
machine_unlearning/evaluation in https://github.com/OPTML-Group/UnlearnCanvas: constants/const.py,
sampling_unlearned_models/*.py (100 DDIM steps, eta 0, guidance 9.0, 512 pixels, images saved as JPEG) and
quantitative/accuracy.py (the seeds; two ViT-L/16 of timm over images of 224 pixels, a head for the 51 themes
and one for the 20 objects in the order of the lists). Its noise comes from one global generator in the order
of drawing and cannot be reproduced; ours comes from prompt and seed. Its code for UA, IRA and CRA was never
released.

"Seed_Images", the photographs that the other themes were made from, is one of the 51 themes: its prompts are
drawn and the theme classifier knows it. Public evaluations differ on whether it counts. The headline here
counts it, as accuracy.py does; the same metrics without its images are reported as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize
from torchvision.transforms.functional import pil_to_tensor

from evaluation.examination import JudgeExamination, target_classes
from evaluation.judge import weights_digest
from evaluation.weights import load_whole, read_state

NAME, LITE = "unlearncanvas", "unlearncanvas-lite"
THEMES = [
    *(
        "Abstractionism",
        "Artist Sketch",
        "Blossom Season",
        "Bricks",
        "Byzantine",
        "Cartoon",
        "Cold Warm",
        "Color Fantasy",
        "Comic Etch",
        "Crayon",
    ),
    *(
        "Cubism",
        "Dadaism",
        "Dapple",
        "Defoliation",
        "Early Autumn",
        "Expressionism",
        "Fauvism",
        "French",
        "Glowing Sunset",
        "Gorgeous Love",
    ),
    *(
        "Greenfield",
        "Impressionism",
        "Ink Art",
        "Joy",
        "Liquid Dreams",
        "Magic Cube",
        "Meta Physics",
        "Meteor Shower",
        "Monet",
        "Mosaic",
    ),
    *(
        "Neon Lines",
        "On Fire",
        "Pastel",
        "Pencil Drawing",
        "Picasso",
        "Pop Art",
        "Red Blue Ink",
        "Rust",
        "Seed Images",
        "Sketch",
    ),
    *(
        "Sponge Dabbed",
        "Structuralism",
        "Superstring",
        "Surrealism",
        "Ukiyoe",
        "Van Gogh",
        "Vibrant Flow",
        "Warm Love",
        "Warm Smear",
    ),
    *("Watercolor", "Winter"),
]
"""The theme head's classes in its order; prompts have spaces where file names have underscores."""
OBJECTS = [
    *("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs"),
    *(
        "Horses",
        "Human",
        "Jellyfish",
        "Rabbits",
        "Sandwiches",
        "Sea",
        "Statues",
        "Towers",
        "Trees",
        "Waterfalls",
    ),
]
"""The object head's classes in its order."""
SEED_IMAGES = "Seed Images"
PROMPT = "A {object} image in {style} style."
SEEDS = (188, 288, 588, 688, 888)
LITE_THEMES, LITE_OBJECTS, LITE_SEEDS = 10, 5, 2
"""Sizes of the lite subset, in addition to the concept's own and "Seed_Images"."""
HEAD_WIDTH = 64
"""Features of one attention head of timm's vision transformers."""


class UnlearnCanvasJudge:
    """The two classifiers, each with the classes that an examination draws; they may also see others, which
    no prompt asks for."""

    prompt = PROMPT

    def __init__(
        self,
        style: torch.nn.Module,
        obj: torch.nn.Module,
        themes: Sequence[str] = THEMES,
        objects: Sequence[str] = OBJECTS,
    ) -> None:
        self.heads = {"style": style, "object": obj}
        self.classes = {"style": THEMES, "object": OBJECTS}
        self.domains = {"style": list(themes), "object": list(objects)}

    @classmethod
    def from_files(
        cls, style_classifier: str | Path, object_classifier: str | Path, device: torch.device | str = "cpu"
    ) -> UnlearnCanvasJudge:
        """Load the benchmark's two files (`load_vit`).

        Raises:
            ValueError: one of them is no such classifier.
        """
        return cls(
            load_vit(style_classifier, len(THEMES), device), load_vit(object_classifier, len(OBJECTS), device)
        )

    def subset(self, themes: Sequence[str], objects: Sequence[str]) -> UnlearnCanvasJudge:
        """The same classifiers for fewer prompts; they still choose among all classes."""
        return UnlearnCanvasJudge(self.heads["style"], self.heads["object"], themes, objects)

    @torch.no_grad()
    def verdicts(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """For each image, the theme and the object it sees."""
        seen = {
            domain: head(_fitted(images, head)).argmax(-1).tolist() for domain, head in self.heads.items()
        }
        return [
            {domain: self.classes[domain][seen[domain][i]] for domain in self.heads}
            for i in range(len(images))
        ]

    @torch.no_grad()
    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        """The input (B, width) of the theme head, on the CPU."""
        head: Any = self.heads["style"]
        return head.forward_head(head.forward_features(_fitted(images, head)), pre_logits=True).float().cpu()

    def identity(self) -> str:
        """A hash of both classifiers' weights."""
        return " ".join(weights_digest(head) for head in self.heads.values())


class UnlearnCanvasExamination(JudgeExamination):
    """51 themes x 20 objects x 5 seeds, or the lite subset of them for a first look, which is not comparable
    with published numbers.

    Args:
        concepts: the themes or objects that were to be erased.
        name: the judge's.
        lite: evenly spaced themes and objects, the concept's own included, and two seeds.

    Raises:
        ValueError: a concept or a neighbour names no theme and no object.
    """

    protocol_name = NAME
    seeds: Sequence[int] = SEEDS
    num_inference_steps = 100
    guidance_scale = 9.0
    image_format = "jpeg"

    def __init__(
        self,
        judge: UnlearnCanvasJudge,
        concepts: Sequence[str],
        name: str,
        lite: bool = False,
        **neighbours: Any,
    ) -> None:
        if lite:
            targets = target_classes(judge.domains, concepts)
            themes = _subset(THEMES, LITE_THEMES, targets.get("style", set()) | {SEED_IMAGES})
            judge = judge.subset(themes, _subset(OBJECTS, LITE_OBJECTS, targets.get("object", set())))
            self.seeds = SEEDS[:LITE_SEEDS]
        super().__init__(judge, concepts, name, **neighbours)
        if lite:
            shape = " x ".join(f"{len(names)} {domain}s" for domain, names in judge.domains.items())
            self.protocol = (
                f"{LITE} ({shape} x {LITE_SEEDS} seeds; a subset, comparable with no published figure)"
            )
        kept = [i for i, cell in enumerate(self.cells) if cell.labels["style"] != SEED_IMAGES]
        if any(self.cells[i].forget for i in kept):
            self.without = {"without_seed_images": kept}

    def note_changes(
        self, seeds: Sequence[int] | None, num_inference_steps: int | None, guidance_scale: float | None
    ) -> None:
        """Name in the protocol which of the benchmark's settings were replaced (None: not replaced)."""
        given = {"seeds": seeds and tuple(seeds), "steps": num_inference_steps, "guidance": guidance_scale}
        own = {"seeds": tuple(self.seeds), "steps": self.num_inference_steps, "guidance": self.guidance_scale}
        changed = [
            f"{name} {value} in place of {own[name]}"
            for name, value in given.items()
            if value is not None and value != own[name]
        ]
        if changed:
            self.protocol += f", changed: {'; '.join(changed)}"


def load_vit(path: str | Path, num_classes: int, device: torch.device | str = "cpu") -> torch.nn.Module:
    """A vision transformer of timm from a state dict (`evaluation.weights`); its sizes come from the tensors,
    so that it need not be ViT-L/16.

    Raises:
        ValueError: the file holds no such classifier, or one with another number of classes.
    """
    state = read_state(path)
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        side = patch * round((state["pos_embed"].shape[1] - 1) ** 0.5)
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        found = state["head.weight"].shape[0]
        model = timm.create_model(
            "vit_large_patch16_224",
            img_size=side,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=max(1, width // HEAD_WIDTH),
            num_classes=found,
        )
        load_whole(model, state)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"{path} holds no vision transformer of timm: {str(error).splitlines()[0]}"
        ) from error
    if found != num_classes:
        raise ValueError(
            f"The classifier {path} has {found} classes and {num_classes} are needed: 51 for the themes, 20 for the objects."
        )
    return model.to(device).eval().requires_grad_(False)


def _fitted(images: list[Image.Image], model: Any) -> torch.Tensor:
    """(B, 3, side, side) in [-1, 1]: resized as the benchmark does, PIL's bilinear to a square."""
    resize = Resize(model.patch_embed.img_size, InterpolationMode.BILINEAR)
    pixels = torch.stack([pil_to_tensor(resize(image.convert("RGB"))) for image in images])
    return (pixels.float() / 127.5 - 1).to(next(model.parameters()).device)


def _subset(names: Sequence[str], count: int, kept: set[str]) -> list[str]:
    chosen = {names[i * len(names) // count] for i in range(count)} | kept
    return [name for name in names if name in chosen]
