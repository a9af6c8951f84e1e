"""One run at a time in an output directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.files import make_directory

LOCK_NAME = ".lock"


@contextmanager
def exclusive_run(output_dir: Path) -> Iterator[None]:
    """Hold a directory, made if need be, against other runs; the system takes the lock from a process that
    dies.

    Raises:
        ValueError: another run holds it.
    """
    make_directory(output_dir)
    lock = FileLock(output_dir / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"Another run is writing to {output_dir}; wait for its end, or choose another --output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()
