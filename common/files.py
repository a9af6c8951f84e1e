"""Files that are complete or absent: written aside and renamed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs leaves in place of another."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def write_aside(path: Path, write: Any) -> None:
    """Call `write(temporary_path)` and rename the result to `path`, so that a kill leaves the old file or
    the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    write(aside)
    give_usual_mode(aside)
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, complete or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def make_directory(path: Path) -> Path:
    """The directory, made if there is none; of a link that leads nowhere, what it leads to.

    Raises:
        ValueError: it is a link that leads to itself.
    """
    check_link(path)
    found = path.resolve()
    found.mkdir(parents=True, exist_ok=True)
    return found


def check_link(path: Path) -> None:
    """Refuse a link that leads to itself.

    Raises:
        ValueError: it does.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a link that leads to itself; choose another place.") from error


def give_usual_mode(path: Path) -> None:
    """Let those read a file whom the umask lets read; safetensors writes for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def why_unreadable(path: str | Path, error: Exception) -> str:
    """Why a file of weights cannot be read, as the end of a sentence, in one line."""
    if is_pointer(path):
        return "a git-lfs pointer stands in its place; run `git lfs pull`"
    if Path(path).suffix in PICKLES:
        return "pickles can run any code and are never read; find it as safetensors, or convert it"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_pointer(path: str | Path) -> bool:
    """Whether a file is what git-lfs leaves in place of one that has not been fetched."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False
