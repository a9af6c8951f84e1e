"""Images on disk, shard by shard, so that an evaluation can take days, be interrupted, and run in several
processes.

A side (the base, or the adapter at one weight) is a directory: `manifest.json` (what the images depend on),
an image file for each prompt and seed, and for every complete shard `shard-NNNNN.json` with the SHA-256 of
its files. A shard is a sequence of consecutive images; it counts once its JSON exists, which is written last.
A judge's verdicts on a shard are in `seen-NNNNN-KEY.safetensors`; the key covers the judge and the images'
hashes, so that verdicts on other images or by another judge are never found.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.files import make_directory, write_bytes, write_json, write_text, write_together

logger = logging.getLogger(__name__)

SHARD_SIZE = 64
MANIFEST = "manifest.json"
FORMATS = {"png": {"format": "PNG"}, "jpeg": {"format": "JPEG"}}
"""How Pillow writes them: PNG keeps every pixel, JPEG is at Pillow's default quality of 75."""

Job = tuple[int, int]
"""Index of a prompt, and a seed."""


@dataclass
class Seen:
    """Observations of a shard's images.

    Attributes:
        verdicts: for each image, by domain.
        values: further measurements by name, a row for each image.
    """

    verdicts: list[dict[str, str]]
    values: dict[str, np.ndarray]


class Side:
    """The images of one side in a directory.

    Args:
        settings: everything the images depend on, JSON.
        image_format: "png" or "jpeg".

    Raises:
        ValueError: the directory holds images that depend on something else.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], image_format: str = "png") -> None:
        self.directory, self.image_format = directory, image_format
        wanted = {**settings, "image_format": image_format, "shard_size": SHARD_SIZE}
        path = make_directory(directory) / MANIFEST
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise ValueError(
                    f"{path} is damaged; choose another directory, or add --overwrite_output_dir to start "
                    "--output_dir anew."
                )
            for name in wanted:
                if found.get(name) != wanted[name]:
                    raise ValueError(
                        f"{directory} holds images of another evaluation ({name} is {_shown(found.get(name))} there "
                        f"and {_shown(wanted[name])} here); choose another directory, or add "
                        "--overwrite_output_dir to start --output_dir anew."
                    )
        else:
            write_json(path, wanted)

    def images(
        self, shard: int, jobs: Sequence[Job], draw: Callable[[], list[Image.Image]]
    ) -> list[Image.Image]:
        """The images of a shard as they are on disk; if one is missing or changed, the log names it and its
        shard is drawn again."""
        damaged = self._damaged(shard, jobs)
        if damaged is None or damaged:
            for name in damaged or []:
                logger.warning(
                    f"{self.directory / name} is missing or damaged; its shard of {len(jobs)} images is drawn again."
                )
            self._write(shard, jobs, draw())
        return [self.image(job) for job in jobs]

    def is_whole(self, shard: int, jobs: Sequence[Job]) -> bool:
        """Whether all images of a shard are on disk as they were written."""
        return self._damaged(shard, jobs) == []

    def image(self, job: Job) -> Image.Image:
        """One image of a shard that is whole."""
        with Image.open(self.directory / self.file_name(job)) as image:
            return image.convert("RGB")

    def key(self, shard: int, *judged_by: str) -> str:
        """What observations of a complete shard depend on: a hash of its images' hashes and of the judge."""
        return hashlib.sha256(
            "\n".join([self._index(shard).read_text(encoding="utf-8"), *judged_by]).encode()
        ).hexdigest()[:16]

    def read_seen(self, shard: int, key: str) -> Seen | None:
        """The observations, if there are any."""
        path = self._seen(shard, key)
        try:
            with safe_open(path, "np") as file:
                verdicts = json.loads(file.metadata()["verdicts"])
                if not all(isinstance(verdict, dict) for verdict in verdicts):
                    raise ValueError("verdicts of another kind")
                return Seen(verdicts, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning(f"{path} is damaged ({error}); the images are judged again.")
            return None

    def write_seen(self, shard: int, key: str, seen: Seen) -> None:
        """Keep observations; those of other images or by other judges are not touched."""
        verdicts = {"verdicts": json.dumps(seen.verdicts, ensure_ascii=False)}
        tensors = {name: np.ascontiguousarray(rows) for name, rows in seen.values.items()}
        write_bytes(self._seen(shard, key), save(tensors, verdicts))

    def file_name(self, job: Job) -> str:
        """Of an image."""
        return f"{job[0]:05d}-seed{job[1]}.{self.image_format}"

    def _write(self, shard: int, jobs: Sequence[Job], images: Sequence[Image.Image]) -> None:
        contents = {}
        for job, image in zip(jobs, images, strict=True):
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, **FORMATS[self.image_format])
            contents[self.directory / self.file_name(job)] = buffer.getvalue()
        write_together(contents)
        digests = {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
        write_text(self._index(shard), json.dumps(digests, indent=0) + "\n")

    def _damaged(self, shard: int, jobs: Sequence[Job]) -> list[str] | None:
        """The files of a shard that are missing or changed; None if it was never completed."""
        try:
            digests = json.loads(self._index(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        names = [self.file_name(job) for job in jobs]
        if not isinstance(digests, dict) or not all(isinstance(digests.get(name), str) for name in names):
            return None
        return [name for name in names if digests[name] != self._digest(name)]

    def _digest(self, name: str) -> str | None:
        try:
            return hashlib.sha256((self.directory / name).read_bytes()).hexdigest()
        except OSError:
            return None

    def _index(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}.json"

    def _seen(self, shard: int, key: str) -> Path:
        return self.directory / f"seen-{shard:05d}-{key}.safetensors"


def split(jobs: Sequence[Job], size: int = SHARD_SIZE) -> list[list[Job]]:
    """Consecutive runs of at most `size` jobs."""
    return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
