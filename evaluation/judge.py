"""The judge: a small classifier with one head a domain, the only source of reported figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


class Judge(nn.Module):
    """Residual network over finished images with a linear head for each domain.

    Args:
        domains: class names by domain, e.g. `{"style": [...], "object": [...]}`.
        prompt: how this world words a prompt, with one field a domain, e.g. `"a {object} image in {style} style"`.
        image_size: side of the images in pixels.
        widths: channels of each stage; every stage after the first halves the resolution.
    """

    def __init__(self, domains: dict[str, list[str]], prompt: str, image_size: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.config = {"domains": domains, "prompt": prompt, "image_size": image_size, "widths": list(widths)}
        self.domains, self.prompt, self.image_size = domains, prompt, image_size
        channels = [widths[0], *widths]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = nn.Sequential(*(ResidualBlock(channels[i], channels[i + 1], 1 if i == 0 else 2) for i in range(len(widths))))
        self.heads = nn.ModuleDict({domain: nn.Linear(widths[-1], len(names)) for domain, names in domains.items()})

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> pooled features (B, widths[-1])."""
        return self.stages(self.stem(pixels)).mean(dim=(2, 3))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> logits (B, classes) by domain."""
        features = self.features(pixels)
        return {domain: head(features) for domain, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, pixels: torch.Tensor, batch_size: int = 256) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> class indices (B,) by domain, on the CPU."""
        device = next(self.parameters()).device
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = nn.functional.interpolate(pixels, (self.image_size, self.image_size), mode="bicubic", antialias=True)
        chunks = [self(chunk.to(device)) for chunk in pixels.split(batch_size)]
        return {domain: torch.cat([c[domain].argmax(-1) for c in chunks]).cpu() for domain in self.domains}

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(tensors, directory / WEIGHTS_NAME)
        (directory / CONFIG_NAME).write_text(json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Judge:
        """Load a judge from a local directory.

        Raises:
            ValueError: the directory holds no judge, or its weights do not fit its config.
        """
        directory = Path(directory)
        try:
            judge = cls(**json.loads((directory / CONFIG_NAME).read_text()))
            judge.load_state_dict(load_file(directory / WEIGHTS_NAME))
        except (OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{directory} is not a judge ({CONFIG_NAME} + {WEIGHTS_NAME}): {error}") from error
        return judge.eval().requires_grad_(False)


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """PIL images of one size -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
