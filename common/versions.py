"""Which releases made a file, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import version

DECISIVE = ("torch", "diffusers", "transformers", "peft", "open_clip_torch")


def versions() -> dict[str, str]:
    """Versions of what decides weights and pixels."""
    return {"python": platform.python_version()} | {name: version(name) for name in DECISIVE}
