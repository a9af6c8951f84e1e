"""What results, cards and headers call a model: never by a path of this machine."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import canvas

BUNDLED_PIPELINE, BUNDLED_JUDGE = "bundled canvas", "bundled canvas judge"


def public_name(name_or_path: str | Path) -> str:
    """How results name a model: the bundled ones as such, a local directory by its last part, a Hub id as
    it is."""
    path = Path(name_or_path)
    for bundled, name in ((canvas.PIPELINE, BUNDLED_PIPELINE), (canvas.JUDGE, BUNDLED_JUDGE)):
        if str(name_or_path) == name or path.resolve() == bundled.resolve():
            return name
    return path.resolve().name if os.path.exists(path) or path.is_absolute() else str(name_or_path)


def hub_id(name: str) -> str | None:
    """`name` if it is a Hub id of the form owner/model and no local path, else None."""
    return name if "/" in name and is_valid_id(name) and not os.path.exists(name) else None


def is_valid_id(name: str) -> bool:
    """Whether a repository on the Hub can be called so."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def without_path(text: str) -> str:
    """A local path cut to its last part; any other text as it is."""
    prefix = "local-dir:" if text.startswith("local-dir:") else ""
    path = text.removeprefix(prefix)
    local = (
        path.startswith(("/", "~", "."))
        or PureWindowsPath(path).drive
        or ("/" in path and os.path.exists(path))
    )
    return prefix + file_name(path) if local else text


def file_name(path: str | Path) -> str:
    """The last part of a local path, whichever system wrote it."""
    if isinstance(path, Path):
        path = path.resolve()
    elif path.startswith("."):
        path = os.path.abspath(path)
    return PureWindowsPath(path).name or "adapter"
