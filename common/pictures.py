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
    [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jxl"]
)
"""Of what a folder's pictures are. Those that cannot be read here are named in an error, not left out."""
WHITE = (255, 255, 255, 255)


def pictures_in(directory: str | Path, *, below: bool = False) -> list[Path]:
    """The picture files of a folder, in the order of their names.

    Args:
        below: those of its subfolders too.
    """
    found = Path(directory).rglob("*") if below else Path(directory).iterdir()
    return sorted(path for path in found if path.suffix.casefold() in SUFFIXES and path.is_file())


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
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image.convert("RGBA"))
        return _to_srgb(image.convert("RGB"), profile)
    return _to_srgb(image if image.mode in ("CMYK", "L", "LAB") else image.convert("RGB"), profile)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, as uint8: the range is the smallest usual one that holds them
    all.

    Raises:
        ValueError: none does.
    """
    least, most = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    ranges: Sequence[float] = (1, 255, 65535) if floats else (65535, 2**32 - 1)
    if values.dtype.itemsize == 4 and not floats:
        ranges = (255, *ranges)
    white = next((white for white in ranges if least >= 0 and most <= white), None)
    if white is None:
        raise ValueError(f"its values lie between {least:g} and {most:g}, which is no usual range")
    return (values.astype(np.float64) * (255 / white)).round().astype(np.uint8)


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
