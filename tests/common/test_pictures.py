"""Users' pictures of every kind look the same once they are read."""

from __future__ import annotations

import ast
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from sources import nodes

from common.pictures import as_shown, pictures_in, read_picture

SIDE = 16
OPENERS = {
    "common/pictures.py": "the reader",
    "evaluation/grid.py": "a picture in memory",
    "evaluation/shards.py": "what an evaluation has drawn",
    "training/previews.py": "what a run has drawn",
}
"""Modules that open pictures, and whose."""


def drawing() -> Image.Image:
    """A red square with a blue corner on white: upright in one way only."""
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[2:12, 2:12] = (200, 30, 30)
    pixels[2:6, 2:6] = (30, 30, 200)
    return Image.fromarray(pixels)


def grey() -> np.ndarray:
    """(SIDE, SIDE) float in [0, 1], with black and white."""
    return np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float32)


def transparent() -> Image.Image:
    """The drawing, its white transparent and black beneath."""
    rgba = np.dstack([np.asarray(drawing()), np.full((SIDE, SIDE), 255, np.uint8)])
    rgba[(rgba[..., :3] == 255).all(-1)] = (0, 0, 0, 0)
    return Image.fromarray(rgba)


def palette_with_hole() -> Image.Image:
    """The drawing in 16 colours, white being the transparent one."""
    image = drawing().quantize(16, dither=Image.Dither.NONE)
    index = image.getpixel((SIDE - 1, SIDE - 1))
    palette = image.getpalette()
    palette[3 * index : 3 * index + 3] = [0, 0, 0]
    image.putpalette(palette)
    image.info["transparency"] = index
    return image


def turned(image: Image.Image) -> tuple[Image.Image, Image.Exif]:
    """As a camera held upright saves it: lying, with the tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return image.transpose(Image.Transpose.ROTATE_90), exif


COLOURED: dict[str, Callable[[Path], None]] = {
    "plain.png": lambda path: drawing().save(path),
    "plain.bmp": lambda path: drawing().save(path),
    "plain.gif": lambda path: drawing().save(path),
    "plain.webp": lambda path: drawing().save(path, lossless=True),
    "plain.tif": lambda path: drawing().save(path),
    "deep.tiff": lambda path: write_deep_tiff(np.asarray(drawing()), path),
    "transparent.png": lambda path: transparent().save(path),
    "transparent.webp": lambda path: transparent().save(path, lossless=True),
    "transparent.tif": lambda path: transparent().save(path),
    "palette.png": lambda path: palette_with_hole().save(path),
    "palette.gif": lambda path: palette_with_hole().save(path),
    "colourkey.png": lambda path: keyed(path),
    "turned.png": lambda path: save_turned(path),
    "turned.tif": lambda path: save_turned(path),
    "turned.webp": lambda path: save_turned(path, lossless=True),
    "moving.gif": lambda path: moving(path),
    "moving.png": lambda path: moving(path),
    "cmyk.tif": lambda path: drawing().convert("CMYK").save(path),
}
"""Files of the drawing that lose nothing, and how each is written."""


def save_turned(path: Path, **settings: object) -> None:
    image, exif = turned(drawing())
    image.save(path, exif=exif, **settings)


def moving(path: Path) -> None:
    drawing().save(path, save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE), "green")])


def keyed(path: Path) -> None:
    """RGB without alpha, whose black is declared transparent."""
    pixels = np.array(drawing())
    pixels[(pixels == 255).all(-1)] = 0
    Image.fromarray(pixels).save(path, transparency=(0, 0, 0))


def write_deep_tiff(pixels: np.ndarray, path: Path) -> None:
    """Colour of 16 bits, which Pillow reads and does not write."""
    height, width, _ = pixels.shape
    data = (pixels.astype("<u2") * 257).tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    head = struct.pack("<2sHI3H", b"II", 42, 14 + len(data), 16, 16, 16)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(head + data + directory + struct.pack("<I", 0))


@pytest.mark.parametrize("name", COLOURED)
def test_a_drawing_is_the_same_whatever_file_it_is_in(name: str, tmp_path: Path) -> None:
    COLOURED[name](tmp_path / name)
    found = read_picture(tmp_path / name)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(drawing()))


GREY: dict[str, Image.Image] = {
    "16.png": Image.fromarray((grey() * 65535).round().astype(np.uint16)),
    "16.tif": Image.fromarray((grey() * 65535).round().astype(np.uint16)),
    "32.tif": Image.fromarray((grey() * 65535).round().astype(np.int32)),
    "unit.tif": Image.fromarray(grey()),
    "bytes.tif": Image.fromarray(grey() * 255),
    "deep.tif": Image.fromarray(grey() * 65535),
    "8.png": Image.fromarray((grey() * 255).round().astype(np.uint8)),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_of_any_depth_is_as_bright_as_it_looks(name: str, tmp_path: Path) -> None:
    GREY[name].save(tmp_path / name)
    found = np.asarray(read_picture(tmp_path / name))
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()
    np.testing.assert_allclose(found[..., 0], 255 * grey(), atol=0.5)


def test_one_bit_and_grey_with_alpha(tmp_path: Path) -> None:
    mask = grey() > 0.5
    Image.fromarray(mask).save(tmp_path / "1.png")
    assert (np.asarray(read_picture(tmp_path / "1.png"))[..., 0] == 255 * mask).all()
    pair = np.dstack([np.zeros((SIDE, SIDE), np.uint8), (255 * mask).astype(np.uint8)])
    Image.fromarray(pair, "LA").save(tmp_path / "la.png")
    assert (np.asarray(read_picture(tmp_path / "la.png"))[..., 0] == np.where(mask, 0, 255)).all()


def test_colours_of_another_profile_become_srgb(tmp_path: Path) -> None:
    """The same numbers mean other colours in a profile of L*a*b*."""
    lab = ImageCms.profileToProfile(
        drawing(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert (
        np.abs(np.asarray(as_shown(lab), int) - np.asarray(drawing(), int)).max() <= 16
    )  # 8 bits of L*a*b* are coarse
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    drawing().save(tmp_path / "tagged.png", icc_profile=srgb)
    tagged = np.asarray(read_picture(tmp_path / "tagged.png"), int)
    assert np.abs(tagged - np.asarray(drawing(), int)).max() <= 1
    drawing().save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert (np.asarray(read_picture(tmp_path / "broken.png")) == np.asarray(drawing())).all()


def test_of_several_pictures_the_first_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moving(tmp_path / "moving.gif")
    with caplog.at_level(logging.WARNING):
        read_picture(tmp_path / "moving.gif")
    assert "moving.gif has several pictures" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "cannot identify"),
        ("cut.png", None, "cannot be read"),
        ("far.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("text.png", b"hello", "cannot identify"),
        ("empty.webp", b"", "cannot identify"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        drawing().save(path)
        content = path.read_bytes()[:60]
    path.write_bytes(content)
    assert pictures_in(tmp_path) == [path]  # not left out in silence
    with pytest.raises(ValueError, match=rf"{name}.*{why}.*save it as PNG"):
        read_picture(path)


def test_values_without_a_usual_range_are_refused(tmp_path: Path) -> None:
    for number, values in enumerate((grey() - 0.5, grey() * 1e9, grey() * np.nan)):
        Image.fromarray(values).save(tmp_path / f"{number}.tif")
        with pytest.raises(ValueError, match="no usual range"):
            read_picture(tmp_path / f"{number}.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_tags_do_not_matter(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"")):
        path = tmp_path / f"{number}.jpg"
        drawing().save(path, quality=100, exif=exif)
        assert read_picture(path).size == (SIDE, SIDE)


def test_no_other_module_opens_the_pictures_of_users() -> None:
    openers = ("Image.open", "PIL.Image.open")
    found = {
        name for name, node in nodes() if isinstance(node, ast.Attribute) and ast.unparse(node) in openers
    }
    assert found == set(OPENERS)
