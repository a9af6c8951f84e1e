"""CIFAR-10 as two uint8 tensors, from a zip of JPEGs or from the `datasets` package, decoded once and
cached."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from tqdm.auto import tqdm

from common.files import make_directory, write_bytes

if TYPE_CHECKING:
    import datasets

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDE = 32
HUB_ID = "uoft-cs/cifar10"


class DataError(Exception):
    """The photographs cannot be had; the message is one sentence for the user."""


class Photos(NamedTuple):
    """Photographs of one split, in order of class and of index within the class."""

    images: torch.Tensor
    """(N, 3, 32, 32) uint8."""
    labels: torch.Tensor
    """(N,) int64, indices into CLASSES."""


def load_photos(data_zip: Path | None, cache: Path) -> dict[str, Photos]:
    """`{"train": Photos, "test": Photos}` from `cache` if it exists, else from `data_zip`, else from
    `datasets`.

    Raises:
        DataError: no source is at hand, or the zip is missing, broken or incomplete.
    """
    if not cache.exists():
        splits = read_zip(data_zip) if data_zip else read_hub()
        content = {
            f"{split}.{field}": t for split, photos in splits.items() for field, t in photos._asdict().items()
        }
        write_bytes(make_directory(cache.parent) / cache.name, save(content))
    tensors = load_file(cache)
    return {
        split: Photos(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in ("train", "test")
    }


def read_zip(file: Path) -> dict[str, Photos]:
    """Decode the members `train/<class>/*.jpg` and `test/<class>/*.jpg` of a zip, without extracting it.

    Raises:
        DataError: the zip is missing, broken, lacks a class or holds an image of another size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {split: _read_split(archive, split) for split in ("train", "test")}
    except FileNotFoundError as error:
        raise DataError(
            f"{file} does not exist: give --data_zip the path of a zip with train/<class>/*.jpg and "
            "test/<class>/*.jpg."
        ) from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{file} cannot be read as a zip of JPEG photographs ({error}): fetch it again."
        ) from error


def _read_split(archive: zipfile.ZipFile, split: str) -> Photos:
    members = sorted(
        m
        for m in archive.namelist()
        if m.startswith(f"{split}/") and m.endswith(".jpg") and m.split("/")[1] in CLASSES
    )
    labels = [CLASSES.index(member.split("/")[1]) for member in members]
    missing = [name for label, name in enumerate(CLASSES) if label not in labels]
    if missing:
        raise DataError(
            f"{archive.filename} has no {split} photographs of {', '.join(missing)}: it needs "
            f"{split}/<class>/*.jpg for every class."
        )
    with tqdm(members, desc=f"decoding {split}") as bar:
        images = [_decode(archive.read(member), member) for member in bar]
    return Photos(_stack(images), torch.tensor(labels))


def _decode(data: bytes, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if image.size != (SIDE, SIDE):
            raise DataError(
                f"{name} is {image.width}x{image.height} pixels: the photographs must be {SIDE}x{SIDE}."
            )
        return np.asarray(image.convert("RGB"))


def read_hub() -> dict[str, Photos]:
    """The same photographs from the Hub's data set, through the `datasets` package.

    Raises:
        DataError: the package is not installed or the data set cannot be loaded.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            "No photographs: give --data_zip PATH, or `pip install datasets` to load "
            + HUB_ID
            + " from the Hub."
        )
    from datasets import load_dataset

    try:
        dataset = load_dataset(HUB_ID)
    except (OSError, ValueError) as error:
        raise DataError(f"{HUB_ID} could not be loaded ({error}): give --data_zip PATH instead.") from error
    return {split: _from_hub(dataset[split], split) for split in ("train", "test")}


def _from_hub(rows: datasets.Dataset, split: str) -> Photos:
    labels = torch.tensor(rows["label"])
    images = [np.asarray(row["img"].convert("RGB")) for row in tqdm(rows, desc=f"decoding {split}")]
    order = labels.argsort(stable=True)
    return Photos(_stack(images)[order], labels[order])


def _stack(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
