"""Safetensors files with a text header, written complete or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from common.files import check_link, give_usual_mode, make_directory, why_unreadable

HASH_KEY = "modelspec.hash_sha256"
OF_FILE_SYSTEMS = {"lost+found"}
"""What an empty file system already has at its root."""


class UnreadableAdapter(ValueError):
    """A file that is not there or cannot be read as an adapter."""


def read_header(path: Path) -> dict[str, str]:
    """The header alone.

    Raises:
        UnreadableAdapter: there is no such file, or it is not safetensors.
    """
    with _readable(path), safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def read_names(path: Path) -> list[str]:
    """The names of the tensors alone.

    Raises:
        UnreadableAdapter: there is no such file, or it is not safetensors.
    """
    with _readable(path), safe_open(path, "pt") as file:
        return list(file.keys())


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header.

    Raises:
        UnreadableAdapter: there is no such file, or it is not safetensors.
    """
    with _readable(path):
        return load_file(path), read_header(path)


def write_file(path: Path, tensors: dict[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write aside and rename, so that a kill or a full disk leaves the old file or the new one; the header's
    hash is that of the tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".adapter-") as aside:
        complete = Path(aside) / path.name
        save_file(tensors, complete, metadata={**header, HASH_KEY: tensor_hash(tensors)})
        give_usual_mode(complete)
        os.replace(complete, path)


def require_empty(directory: Path) -> None:
    """Refuse a directory that holds something, apart from what file systems keep at their root.

    Raises:
        ValueError: it exists and is not an empty directory.
    """
    check_link(directory)
    if directory.exists() and not (directory.is_dir() and set(os.listdir(directory)) <= OF_FILE_SYSTEMS):
        raise ValueError(f"--output_dir {directory} is not an empty directory; choose another, or empty it.")


@contextmanager
def filled(directory: Path, last: str) -> Iterator[Path]:
    """Within: a directory aside. What it then holds is moved into `directory`, which may be a mount point, a
    link or the working directory, and is made if there is none; after an error within it holds nothing.

    Args:
        directory: one that `require_empty` accepts.
        last: the name that is moved after all the others, without which the directory counts as incomplete.
    """
    made = not directory.exists()
    target = make_directory(directory)
    try:
        with tempfile.TemporaryDirectory(dir=target, prefix=".incomplete-") as aside:
            yield Path(aside)
            for name in sorted(os.listdir(aside), key=lambda name: (name == last, name)):
                os.replace(Path(aside) / name, target / name)
    except BaseException:
        if made:
            shutil.rmtree(target, ignore_errors=True)
        raise


def tensor_hash(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256, in ModelSpec's notation, of the file of these tensors after its header."""
    data = memoryview(save(tensors))
    header_length = int.from_bytes(data[:8], "little")
    return "0x" + hashlib.sha256(data[8 + header_length :]).hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UnreadableAdapter(f"{path} is not an adapter: {why_unreadable(path, error)}") from error
