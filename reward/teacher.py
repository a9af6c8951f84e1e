"""The clean teacher: an open_clip model over finished images, and the text side of every reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_to_tensor

from common.hub_client import patience
from common.hub_reasons import LOAD_ERRORS, why_not_loaded
from common.weights import check_kinds, check_values, kinds_in, kinds_of
from reward.preprocessing import for_tensors

PROBE = "a photo of a cat"
PROBE_LENGTH = 8
PICKLES = {".pt", ".bin", ".pth", ".ckpt"}


class Teacher:
    """Image and text embeddings of an open_clip model, unit length, float32.

    Attributes:
        name: as it was given.
        unit_length: whether its embeddings have length one, so that a predictor's should.
    """

    unit_length = True

    def __init__(
        self,
        model: open_clip.CLIP,
        preprocess: Compose,
        tokenizer: open_clip.tokenizer.SimpleTokenizer,
        name: str,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.preprocess = for_tensors(preprocess)

    @classmethod
    def from_pretrained(
        cls, clip_model: str, clip_pretrained: str | None = None, device: torch.device | str = "cpu"
    ) -> Teacher:
        """Load `local-dir:DIR`, `hf-hub:ID`, or an open_clip architecture name with a pretrained tag or
        safetensors file.

        Raises:
            ValueError: the model cannot be had; the message says what to give instead.
        """
        if ":" not in clip_model and not clip_pretrained:
            raise ValueError(
                f"--clip_model {clip_model} needs --clip_pretrained with a tag (see open_clip.list_pretrained()) or a safetensors file."
            )
        if (
            clip_pretrained
            and Path(clip_pretrained).suffix != ".safetensors"
            and (Path(clip_pretrained).suffix in PICKLES or Path(clip_pretrained).is_file())
        ):
            raise ValueError(
                f"--clip_pretrained {clip_pretrained} is a pickle; only safetensors files are read."
            )
        directory, weights = clip_model.removeprefix("local-dir:"), Path(clip_pretrained or "")
        if directory != clip_model:
            weights = Path(directory) / "open_clip_model.safetensors"
        if directory != clip_model and not weights.is_file():
            raise ValueError(
                f"{directory} holds no open_clip model (open_clip_config.json + open_clip_model.safetensors)."
            )
        try:
            with patience():
                model, _, preprocess = open_clip.create_model_and_transforms(
                    clip_model, pretrained=clip_pretrained, device=device
                )
                tokenizer = open_clip.get_tokenizer(clip_model)
            check_clip(model, weights)
        except LOAD_ERRORS as error:
            raise ValueError(
                f"The CLIP model {clip_model} could not be loaded: {why_not_loaded(error)}"
            ) from error
        return cls(model.float(), preprocess, tokenizer, clip_model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode_text(self, texts: list[str], batch_size: int = 256) -> torch.Tensor:
        """N texts -> (N, D)."""
        chunks = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return torch.cat(
            [
                F.normalize(self.model.encode_text(self.tokenizer(chunk).to(self.device)).float(), dim=-1)
                for chunk in chunks
            ]
        )

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D)."""
        chunks = pixels.to(self.device).split(batch_size)
        return torch.cat(
            [
                F.normalize(
                    self.model.encode_image(self.preprocess((c.clamp(-1, 1) + 1) / 2)).float(), dim=-1
                )
                for c in chunks
            ]
        )

    def identity(self) -> dict[str, Any]:
        """What tells this teacher from another, JSON: the first numbers of a text's embedding, in which
        two CLIPs of one width never agree."""
        return {
            "probe": PROBE,
            "embedding": [round(value, 4) for value in self.encode_text([PROBE])[0, :PROBE_LENGTH].tolist()],
        }

    def encode_pictures(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Pictures of any sizes -> (B, D)."""
        return torch.cat([self.encode_images(to_pixels(picture)) for picture in pictures])

    def encode_targets(self, texts: list[str]) -> torch.Tensor:
        """N prompts that ask for the concept -> (N, D): a prompt is its own target, since it differs from
        its anchors by the concept alone."""
        return self.encode_text(texts)


def check_clip(model: open_clip.CLIP, weights: Path) -> None:
    """Refuse what open_clip, which compares names itself, lets through: position embeddings of another
    shape, which it stretches, whole numbers, NaN.

    Args:
        weights: its file, if that is a local one.

    Raises:
        DamagedWeights: there is any of it.
    """
    if weights.is_file():
        wanted, found = kinds_of(model), kinds_in(weights)
        # Files of older releases have other names for some; the number of values of a scale says it all.
        both = {name for name in wanted.keys() & found.keys() if wanted[name].shape not in ((), (1,))}
        check_kinds("it", {name: wanted[name] for name in both}, {name: found[name] for name in both})
    check_values("it", model.state_dict())


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """A picture -> (1, 3, H, W) in [-1, 1]."""
    return pil_to_tensor(picture.convert("RGB"))[None].float() / 127.5 - 1
