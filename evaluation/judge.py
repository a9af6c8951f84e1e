"""The judge: a small classifier with one head for each domain, the only source of reported metrics; and the
interface of any judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from common.files import as_json, make_directory, why_unreadable, write_together
from common.weights import TENSORS_KEY, check_hash, check_kinds, check_values, hashes, kinds_in, kinds_of

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
WHITENED, POOLED_SCALE = 24, 9.0
"""Of pooled blocks: filters of the stem, a whitening's directions and their negatives; and the divisor of the
features, which makes the first verdicts unsure."""


class ImageJudge(Protocol):
    """Says which class an image shows.

    Attributes:
        domains: class names by domain.
        prompt: its wording of a prompt, with one field for each domain; empty if it has none.
    """

    domains: dict[str, list[str]]
    prompt: str

    def verdicts(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """For each image, the class it sees, by domain."""

    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        """Features (B, D) of images, float32 on the CPU, for distances between sets of images."""

    def identity(self) -> str:
        """What distinguishes it from another judge: a hash of its weights."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut.

    The shortcut skips pixels before its convolution: the gradient of one with a stride writes past its memory
    in torch 2.15 (1x1, 8 channels, channels last, AVX-512).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.shortcut(x[..., :: self.stride, :: self.stride])).relu()


class PooledBlock(nn.Module):
    """A 3x3 convolution initialised as the identity, max-pooled to half the side, and another; batch norm
    without scales, GELU.

    From Jordan (2024, https://arxiv.org/abs/2404.00498), for small photographs and few passes over them; the
    stem before it should whiten.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
        second = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        for convolution in (first, second):
            nn.init.dirac_(convolution.weight[: convolution.in_channels])
        norms = [nn.BatchNorm2d(out_channels, momentum=0.4) for _ in range(2)]
        for norm in norms:
            norm.weight.requires_grad_(False)
        self.body = nn.Sequential(first, nn.MaxPool2d(2), norms[0], nn.GELU(), second, norms[1], nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Judge(nn.Module):
    """Convolutional network over finished images with a linear head for each domain.

    Args:
        domains: class names by domain, e.g. `{"style": [...], "object": [...]}`.
        prompt: wording of a prompt, with one field for each domain, e.g. `"a {object} image in {style}
            style"`.
        image_size: side of the images in pixels.
        widths: channels of each stage. Residual stages after the first halve the resolution; all pooled ones
            do.
        blocks: "residual", or "pooled" for photographs.
        mirrored: average the features of an image and its mirror image, except in training.
        several: domains of which an image may show more than one class; their heads answer yes or no for each
            class (logits of sigmoids), the others choose one.
    """

    def __init__(
        self,
        domains: dict[str, list[str]],
        prompt: str,
        image_size: int,
        widths: tuple[int, ...] = (16, 32, 64),
        *,
        blocks: str = "residual",
        mirrored: bool = False,
        several: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = {"domains": domains, "prompt": prompt, "image_size": image_size, "widths": list(widths)}
        self.config |= {} if blocks == "residual" else {"blocks": blocks}
        self.config |= {"mirrored": True} if mirrored else {}
        self.config |= {"several": list(several)} if several else {}
        self.domains, self.prompt, self.image_size = domains, prompt, image_size
        self.blocks, self.mirrored, self.several = blocks, mirrored, tuple(several)
        if blocks == "residual":
            channels = [widths[0], *widths]
            self.stem = nn.Sequential(
                nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
            )
            self.stages = nn.Sequential(
                *(ResidualBlock(channels[i], channels[i + 1], 1 if i == 0 else 2) for i in range(len(widths)))
            )
        elif blocks == "pooled":
            channels = [WHITENED, *widths]
            self.stem = nn.Sequential(nn.Conv2d(3, WHITENED, 2), nn.GELU())
            self.stages = nn.Sequential(
                *(PooledBlock(channels[i], channels[i + 1]) for i in range(len(widths)))
            )
        else:
            raise ValueError(f'There are no {blocks!r} blocks; there are "residual" and "pooled" ones.')
        self.heads = nn.ModuleDict(
            {domain: nn.Linear(widths[-1], len(names)) for domain, names in domains.items()}
        )

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> pooled features (B, widths[-1])."""
        if self.mirrored and not self.training:
            return (self._features(pixels) + self._features(pixels.flip(-1))) / 2
        return self._features(pixels)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.stages(self.stem(pixels))
        return maps.mean(dim=(2, 3)) if self.blocks == "residual" else maps.amax(dim=(2, 3)) / POOLED_SCALE

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> logits (B, classes) by domain."""
        features = self.features(pixels)
        return {domain: head(features) for domain, head in self.heads.items()}

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor, batch_size: int = 256) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> (B, classes) by domain, on the CPU; above 0 is likelier there than not,
        for the domains in `several`."""
        chunks = [self(chunk) for chunk in self._fitted(pixels).split(batch_size)]
        return {domain: torch.cat([c[domain] for c in chunks]).cpu() for domain in self.domains}

    def predict(self, pixels: torch.Tensor, batch_size: int = 256) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> class indices (B,) by domain, on the CPU."""
        return {domain: found.argmax(-1) for domain, found in self.logits(pixels, batch_size).items()}

    def verdicts(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """For each of B images of one size, the class it sees, by domain."""
        seen = self.predict(to_pixels(images))
        return [
            {domain: names[seen[domain][i]] for domain, names in self.domains.items()}
            for i in range(len(images))
        ]

    def shown(self, pixels: torch.Tensor, batch_size: int = 256) -> dict[str, torch.Tensor]:
        """All classes that images show: (B, 3, H, W) in [-1, 1] -> (B, classes) bool by domain, on the CPU.

        One class of each domain, but of the domains in `several` those that are likelier there than not,
        perhaps none.
        """
        return {
            domain: found > 0
            if domain in self.several
            else nn.functional.one_hot(found.argmax(-1), found.shape[-1]).bool()
            for domain, found in self.logits(pixels, batch_size).items()
        }

    @torch.no_grad()
    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        """Pooled features (B, widths[-1]) of images of one size, on the CPU."""
        return self.features(self._fitted(to_pixels(images))).cpu()

    def identity(self) -> str:
        """A hash of its weights and classes."""
        return weights_digest(self, json.dumps(self.config))

    def _fitted(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = nn.functional.interpolate(
                pixels, (self.image_size, self.image_size), mode="bicubic", antialias=True
            )
        return pixels.to(next(self.parameters()).device)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors`, floating-point tensors cast to `dtype`; the weights'
        header has their hash."""
        directory = make_directory(Path(directory))
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.state_dict().items()}
        weights = save(tensors, {TENSORS_KEY: hashes(tensors)[TENSORS_KEY]})
        config = as_json(self.config)
        write_together({directory / WEIGHTS_NAME: weights, directory / CONFIG_NAME: config})

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Judge:
        """Load a judge from a local directory.

        Raises:
            ValueError: the directory holds no judge, or its weights do not fit its config or their hash.
        """
        directory = Path(directory)
        try:
            config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
            with torch.device("meta"):
                wanted = kinds_of(cls(**config))
            check_kinds("it", wanted, kinds_in(directory / WEIGHTS_NAME))
            check_hash("it", directory / WEIGHTS_NAME)
            judge = cls(**config)
            judge.load_state_dict(load_file(directory / WEIGHTS_NAME))
            check_values("it", judge.state_dict())
        except (
            OSError,
            TypeError,
            LookupError,
            ValueError,
            RuntimeError,
            AttributeError,
            ArithmeticError,
            SafetensorError,
        ) as error:
            reason = why_unreadable(directory / WEIGHTS_NAME, error)
            raise ValueError(
                f"{directory} is not a judge ({CONFIG_NAME} + {WEIGHTS_NAME}): {reason}"
            ) from error
        return judge.eval().requires_grad_(False)


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """PIL images of one size -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def weights_digest(module: nn.Module, *said: str) -> str:
    """A hash of a module's weights, and of texts that its output depends on."""
    digest = hashlib.sha256("\n".join(said).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def match_class(domains: Mapping[str, Sequence[str]], wanted: str) -> list[tuple[str, str]]:
    """The classes of that name, ignoring case, each with its domain."""
    return [
        (domain, name)
        for domain, names in domains.items()
        for name in names
        if name.casefold() == wanted.casefold().strip()
    ]
