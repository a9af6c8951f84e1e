"""Safetensors files with a text header, directories that are filled, and what may leave them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from common.files import (
    check_link,
    directory_aside,
    discard,
    disk_errors,
    is_empty,
    make_directory,
    put,
    settle,
    sync,
    why_unreadable,
    write_bytes,
)
from common.weights import ADVICE, TENSORS_KEY, has_its_hashes, hashes

logger = logging.getLogger(__name__)

OURS = {"method", TENSORS_KEY}
"""Keys of which the header of every file that was written here has one, and no other program writes; older
adapters have the first."""


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
    """Tensors and header. A file of others that has not the hash that it says is read with a warning.

    Raises:
        UnreadableAdapter: there is no such file, it is not safetensors, or it was written here and its
            tensors are no longer those.
    """
    check_file(path)
    with _readable(path):
        return load_file(path), read_header(path)


def check_file(path: Path) -> None:
    """Compare a file's tensors with the hash in its header, if that has one.

    Raises:
        UnreadableAdapter: as `read_file` does.
    """
    header = read_header(path)
    if has_its_hashes(path):
        return
    fault = "the SHA-256 of its tensors is another than its header says"
    if OURS & header.keys():
        raise UnreadableAdapter(f"{path} is damaged: {fault}; {ADVICE}")
    logger.warning(f"{path} may be damaged: {fault}.")


def write_file(path: Path, tensors: dict[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write tensors, complete or not at all; the header's hashes are those of the tensors."""
    content = save(tensors, metadata={**header, **hashes(tensors)})
    write_bytes(make_directory(path.parent) / path.name, content)


def require_empty(directory: Path) -> None:
    """Refuse a directory that holds something of anybody's.

    Raises:
        ValueError: it exists and is not an empty directory.
    """
    check_link(directory)
    if directory.exists() and not (directory.is_dir() and is_empty(directory)):
        raise ValueError(f"--output_dir {directory} is not an empty directory; choose another, or empty it.")


@contextmanager
def filled(directory: Path, last: str) -> Iterator[Path]:
    """Within: a directory aside. What it then holds is moved into `directory`, which may be a mount point, a
    link or the working directory, and is made if there is none; after an error within it holds nothing.

    Args:
        directory: one that `require_empty` accepts.
        last: the name that is moved after all the others, without which the directory counts as incomplete.
    """
    if not directory.exists():
        target = make_directory(directory.resolve().parent) / directory.resolve().name
        with directory_aside(target.parent) as aside:
            yield aside
            with disk_errors(target):
                put(aside, target)
        return
    target, moved = make_directory(directory), []
    with directory_aside(target) as aside:
        yield aside
        try:
            with disk_errors(target):
                settle(aside)
                for name in sorted(os.listdir(aside), key=lambda name: (name == last, name)):
                    os.replace(aside / name, target / name)
                    moved.append(target / name)
                sync(target)
        except BaseException:
            for path in moved:
                discard(path)
            raise


def refuse_links_out(directory: Path, names: Iterable[str]) -> None:
    """Refuse files that are links to something outside their directory, which nobody means to publish.

    Raises:
        ValueError: which file is one.
    """
    for name in names:
        if not (directory / name).resolve().is_relative_to(directory.resolve()):
            raise ValueError(
                f"{directory / name} is a link out of the directory, and nothing outside it is uploaded; put a copy "
                "of the file in its place."
            )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UnreadableAdapter(f"{path} is not an adapter: {why_unreadable(path, error)}") from error
