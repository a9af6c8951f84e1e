"""Which weights a name stands for: a run that resumes must find the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

INDEX_NAMES = ("model_index.json", "config.json")


def identity(name_or_path: str | Path, revision: str | None = None) -> str:
    """The commit of a Hub id that was just loaded, else the SHA-256 of a file or of a directory's weight
    files.

    Returns:
        "commit ..." or "sha256 ..."; "unknown" for a Hub id that the cache does not hold.
    """
    path = Path(name_or_path)
    if path.exists():
        return f"sha256 {content_digest(path, '.safetensors')}"
    for name in INDEX_NAMES:
        cached = try_to_load_from_cache(str(name_or_path), name, revision=revision)
        if isinstance(cached, str):
            return f"commit {Path(cached).parent.name}"
    return "unknown"


def content_digest(path: Path, suffix: str = "") -> str:
    """SHA-256 of a file, or of the names and contents of a directory's files that end in `suffix`.

    Raises:
        OSError: one of them cannot be read.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob(f"*{suffix}") if p.is_file()):
        name = file_path.relative_to(path).as_posix()
        digest.update(f"{name} {content_digest(file_path)}\n".encode())
    return digest.hexdigest()
