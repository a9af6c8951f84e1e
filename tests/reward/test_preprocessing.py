"""A tensor gets what open_clip does to a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import Compose, Grayscale
from torchvision.transforms.functional import to_tensor

from reward.preprocessing import for_tensors


@pytest.mark.parametrize("picture", [(64, 64), (80, 40), (30, 90), (16, 12)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("shortest", 32),
        ("shortest", (24, 40)),
        ("longest", 32),
        ("longest", (24, 40)),
        ("squash", 32),
        ("squash", (24, 40)),
    ],
)
def test_every_mode(
    mode: str, size: int | tuple[int, int], interpolation: str, picture: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(picture, Image.Resampling.BICUBIC)
    theirs = image_transform(
        size,
        is_train=False,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=128,
    )
    wanted, found = theirs(image), for_tensors(theirs)(to_tensor(image)[None])[0]
    assert found.shape == wanted.shape
    # PIL rounds to 8 bits and cuts off what overshoots, between its two passes and after them.
    assert (found - wanted).abs().max() < 12 / 255 / 0.2
    assert (found - wanted).abs().mean() < 1 / 255 / 0.2


def test_a_step_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="Grayscale"):
        for_tensors(Compose([Grayscale()]))


def test_a_batch_is_its_images() -> None:
    theirs = image_transform(32, is_train=False, resize_mode="longest")
    images = torch.rand(3, 3, 40, 20, generator=torch.Generator().manual_seed(0))
    together = for_tensors(theirs)(images)
    assert torch.allclose(together, torch.cat([for_tensors(theirs)(image[None]) for image in images]))
