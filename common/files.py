"""Files and directories that are complete or absent: made aside under a name that nobody can guess, written
to the disk, and renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git-lfs leaves in place of another."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
UNFINISHED = ".unfinished-"
"""How the name begins of what is being made, or deleted."""
LOCK_NAME = ".lock"
NOBODYS = {LOCK_NAME, "lost+found"}
"""What a directory may hold and still count as empty: a lock, and what file systems have at their root."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file: a kill, a full disk or a power cut leaves the old one or the new one. A link in its place
    is replaced, not followed.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files of which one is worth nothing without the others, as `write_bytes` does: none is put in its
    place before all are on the disk.

    Raises:
        OSError: one could not be written; what was there is as it was.
    """
    with ExitStack() as held:
        made = {}
        for path, content in contents.items():
            with disk_errors(path):
                descriptor, made[path] = held.enter_context(_new(path.parent, _make_file))
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                os.fchmod(descriptor, 0o666 & ~_umask())
                os.fsync(descriptor)
        for path, aside in made.items():
            with disk_errors(path):
                os.replace(aside, path)
        for parent in {path.parent for path in contents}:
            with disk_errors(parent):
                sync(parent)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as `write_bytes` does."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """A value as our files have it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file that is no link, or begin it.

    Raises:
        OSError: it could not be written.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with open(descriptor, "wb") as file:
            file.write(text.encode())


@contextmanager
def directory_aside(parent: Path) -> Iterator[Path]:
    """Within: a new directory that is private to the user. It is deleted afterwards, unless `put` has moved
    it."""
    with _new(parent, _make_directory) as (_, aside):
        yield aside


def put(aside: Path, path: Path) -> None:
    """Have what a directory holds written to the disk, and put it in the place of another, or where there is
    none; the other one is deleted. A kill between the two renames can leave neither under its name.

    Raises:
        OSError: it could not be done; the other one stays.
    """
    settle(aside)
    if not os.path.lexists(path):
        os.replace(aside, path)
    else:
        away = _unguessable(path)
        os.replace(path, away)
        try:
            os.replace(aside, path)
        except BaseException:
            os.replace(away, path)
            raise
        _delete(away)
    sync(path.parent)


def discard(directory: Path) -> None:
    """Delete a directory, or the link in its place, if there is one; a kill within does not leave half of it
    under its name."""
    if os.path.lexists(directory):
        away = _unguessable(directory)
        os.replace(directory, away)
        _delete(away)


def settle(directory: Path) -> None:
    """Let those read a directory whom the umask lets read, and have all of it written to the disk."""
    for path in (*directory.rglob("*"), directory):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        sync(path)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a directory, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> Path:
    """The directory, made if there is none, without what killed processes have left unfinished in it; of a
    link that leads nowhere, what it leads to.

    Raises:
        ValueError: it is a link that leads to itself.
    """
    check_link(path)
    found = path.resolve()
    found.mkdir(parents=True, exist_ok=True)
    sweep(found)
    return found


def sweep(directory: Path) -> None:
    """Delete what killed processes of this user have left unfinished in a directory. What a living process
    holds stays, and so does everything where the file system knows no locks."""
    for left in directory.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    _delete(left)
            finally:
                os.close(descriptor)


def is_empty(directory: Path) -> bool:
    """Whether a directory holds nothing of anybody's."""
    return all(name in NOBODYS or name.startswith(UNFINISHED) for name in os.listdir(directory))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within: what the disk refuses is an OSError of one sentence that names the file, also where a library
    has an error of its own for it, as safetensors and tokenizers have.

    Raises:
        OSError: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise _unwritten(path, error) from error
    except Exception as error:
        if of_system := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(of_system[1])
            raise _unwritten(path, OSError(number, os.strerror(number))) from error
        raise


class Unwritten(OSError):
    """A file that could not be written; `strerror` is a sentence that says why, and what is there now."""


def _unwritten(path: Path, error: OSError) -> OSError:
    if isinstance(error, Unwritten):
        return error
    there = "what was there is as it was" if os.path.lexists(path) else "nothing is there"
    advice = "; make room on its disk" if error.errno in FULL else ""
    return Unwritten(error.errno, f"{path} could not be written ({error.strerror or error}): {there}{advice}")


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


@contextmanager
def _new(parent: Path, make: Callable[[Path], tuple[int, Path]]) -> Iterator[tuple[int, Path]]:
    """Within: a new file or directory, held by a lock that the system takes from a process that dies; by it
    `sweep` knows what is left. Its name is gone afterwards."""
    while True:
        descriptor, aside = make(parent)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if aside.exists():
            break
        os.close(descriptor)  # a sweep was quicker than the lock
    try:
        yield descriptor, aside
    finally:
        _delete(aside)
        os.close(descriptor)


def _make_file(parent: Path) -> tuple[int, Path]:
    descriptor, name = tempfile.mkstemp(prefix=UNFINISHED, dir=parent)
    return descriptor, Path(name)


def _make_directory(parent: Path) -> tuple[int, Path]:
    name = tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW), Path(name)


def _unguessable(path: Path) -> Path:
    return path.with_name(UNFINISHED + secrets.token_hex(8))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
