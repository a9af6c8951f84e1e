"""A disk that becomes full while something is trained takes away no more than reports."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from common.files import disk_errors, make_directory

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TEXTS = 1 << 18
"""Bytes for headers and texts."""


class Room:
    """Within: room is kept in a directory for what is written at the end of a training, so that nothing else
    fills its disk. It is taken by a file without a name, of which nothing is left however the process ends.

    Args:
        directory: is made if there is none.
        size: bytes of the weights; 0 keeps nothing.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size + TEXTS if size else 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """
        Raises:
            OSError: there is no room.
        """
        if self.size:
            with disk_errors(self.directory / "what is to be trained"):
                self._file = tempfile.TemporaryFile(dir=make_directory(self.directory))
                for start in range(0, self.size, CHUNK):
                    self._file.write(os.urandom(min(CHUNK, self.size - start)))  # zeros might take no room
                self._file.flush()
                os.fsync(self._file.fileno())
        return self

    def __exit__(self, *error: object) -> None:
        self.give()

    def give(self) -> None:
        """Let it be used."""
        if self._file:
            self._file.close()


@contextmanager
def going_on() -> Iterator[None]:
    """Within a training, for what it can do without: a file that cannot be written is said, and ends
    nothing."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{error.strerror or error}. The run goes on.")
