"""One command at a time in an output directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.files import LOCK_NAME, disk_errors, make_directory


@contextmanager
def exclusive(output_dir: Path) -> Iterator[None]:
    """Hold a directory, made if need be, against other commands; the system takes the lock from a process
    that dies. Where the file system knows no locks, nothing is held.

    Raises:
        ValueError: another command holds it.
    """
    make_directory(output_dir)
    with disk_errors(output_dir / LOCK_NAME):
        descriptor = os.open(output_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        with suppress(OSError):
            _take(descriptor, output_dir)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, output_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another run is writing to {output_dir}; wait for its end, or choose another --output_dir."
        ) from None
