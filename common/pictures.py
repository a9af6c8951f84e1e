"""Users' pictures, read as a viewer shows them: upright, on white, in sRGB of 8 bits."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from common.files import is_pointer

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    f".{kind}"
    for kind in [
        "png",
        "apng",
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "jif",
        "webp",
        "bmp",
        "tif",
        "tiff",
        "gif",
        "avif",
        "heic",
        "heif",
        "jxl",
    ]
)
"""Of what a folder's pictures are. Those that cannot be read here are named in an error, not left out."""
OVERSHOOT = 0.05
"""Of a range, how far floats may lie beyond it, as those of filters do; they are cut off."""


def pictures_in(directory: str | Path) -> list[Path]:
    """The picture files of a folder and of its subfolders, in the order of their names; hidden ones, such as
    those that macOS leaves in archives, are none."""
    return sorted(
        path
        for path in Path(directory).rglob("*")
        if path.suffix.casefold() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def no_pictures(directory: str | Path) -> str:
    """What to say of a folder without any."""
    return f"{directory} holds no image ({', '.join(sorted(SUFFIXES))})."


def read_picture(path: str | Path) -> Image.Image:
    """A picture of a user, by `as_shown`.

    Raises:
        ValueError: the file is no picture that can be read here.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                logger.warning(f"{path} has several pictures; the first is taken.")
            image.load()
            return as_shown(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "a git-lfs pointer in place of the picture: run `git lfs pull`" if is_pointer(path) else error
        raise ValueError(
            f"The image {path} cannot be read ({why}); repair it, save it as PNG or JPEG, or take it out of the "
            "folder."
        ) from error


def as_shown(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits a channel: turned as its EXIF tag says, transparency on white,
    colours of another profile as sRGB.

    Raises:
        ValueError: its values have no known range.
    """
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values, hidden = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray(_to_bytes(values))
        if isinstance(hidden, int):
            image.putalpha(Image.fromarray((values != hidden).astype(np.uint8) * 255))
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        colours = _to_srgb(image.convert("L" if image.mode in ("L", "LA") else "RGB"), profile)
        return Image.composite(colours, Image.new("RGB", image.size, "white"), alpha)
    return _to_srgb(image if image.mode in ("CMYK", "L", "LAB") else image.convert("RGB"), profile)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, as uint8: the range is the smallest usual one that holds them
    all, or nearly.

    Raises:
        ValueError: none does.
    """
    least, most = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    ranges: Sequence[float] = (1, 255, 65535) if floats else (65535, 2**32 - 1)
    if values.dtype.itemsize == 4 and not floats:
        ranges = (255, *ranges)
    beyond = OVERSHOOT if floats else 0.0
    white = next((white for white in ranges if most <= (1 + beyond) * white), None)
    if white is None or least < -beyond * white:
        raise ValueError(f"its values lie between {least:g} and {most:g}, which is no usual range")
    return (values.astype(np.float64) * (255 / white)).round().clip(0, 255).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB; colours as the profile has them, or without a readable one as they are."""
    if profile is None and image.mode == "LAB":
        return _transformed(image, ImageCms.createProfile("LAB"))
    if profile is not None:
        try:
            return _transformed(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError):
            logger.debug("A colour profile could not be used.")
    return image.convert("RGB")


def _transformed(image: Image.Image, profile: ImageCms._CmsProfileCompatible) -> Image.Image:
    found = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert found is not None
    return found
