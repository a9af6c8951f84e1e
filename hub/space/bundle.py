"""The files of a Space: the code that the page needs, the adapter to show, and the bundled base if it is for
that."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import SpaceCardData

import canvas
from common.markup import Markdown
from common.names import BUNDLED_PIPELINE, hub_id
from hub.access import HubError
from hub.licences import licence_of
from hub.notes import notes_section
from hub.space.about import About, base_name, introduction, title

ROOT = Path(__file__).parents[2]
ROOMS = ("canvas", "common", "pipelines", "hub")
"""Rooms of this project that a Space carries, unchanged: the page's own, and all that it may import."""
CODE = tuple(
    path.relative_to(ROOT).as_posix() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))
)
APP_NAME, REQUIREMENTS_NAME, SHOWN_NAME = "app.py", "requirements.txt", "space.json"
OWN_FOLDERS = (*ROOMS, "environment", "evaluation", "networks", "policy")
"""Folders of a Space that are this project's, those of older Spaces included."""
GRADIO, PYTHON = "6.31.0", "3.11"
"""Versions that the page is tested with; the Hub installs these."""


def space_files(about: About, adapter: str, commit: str | None) -> dict[str, Path | bytes]:
    """Every file except the card, by its path in the Space.

    Args:
        adapter: its id on the Hub.
        commit: the one that the Space shows; None for the latest.
    """
    here = Path(__file__).parent
    shown = {"adapter": adapter, "revision": commit}
    files: dict[str, Path | bytes] = {name: ROOT / name for name in CODE}
    files |= {APP_NAME: here / APP_NAME, REQUIREMENTS_NAME: here / REQUIREMENTS_NAME}
    files[SHOWN_NAME] = (json.dumps(shown, indent=2) + "\n").encode()
    if about.base == BUNDLED_PIPELINE:
        files |= {
            path.relative_to(ROOT).as_posix(): path
            for path in sorted(canvas.PIPELINE.rglob("*"))
            if path.is_file()
        }
    return files


def space_card(about: About, adapter: str) -> str:
    """README.md: the Hub's settings of a Space, what the page shows, and room for people's notes."""
    data = SpaceCardData(
        title=title(about),
        emoji="🧽",
        colorFrom="green",
        colorTo="gray",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file=APP_NAME,
        **licence_of({**about.results, "base_model_name_or_path": about.base}),
        models=[adapter] if about.base == BUNDLED_PIPELINE else [about.base, adapter],
        tags=["text-to-image", "lora", "concept-erasure", "unlearning"],
        pinned=False,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        Markdown.fill("# {title}", title=title(about)),
        introduction(about, about.base),
        Markdown.fill(
            "The adapter is {adapter}, the base is {base}.",
            adapter=Markdown.link(adapter, f"https://huggingface.co/{adapter}"),
            base=base_name(about.base),
        ),
        "The code is that of critic-guided-unlearning, under the Apache License 2.0 "
        "(https://www.apache.org/licenses/LICENSE-2.0).",
        notes_section(""),
    ]
    return "\n\n".join(sections) + "\n"


def check_base(about: About) -> None:
    """Check that a Space can load the adapter's base.

    Raises:
        HubError: it is not on the Hub.
    """
    if about.base != BUNDLED_PIPELINE and not hub_id(about.base):
        base = f"a local pipeline called {about.base!r}" if about.base else "a base that it does not name"
        raise HubError(
            f"The adapter is for {base}, and a Space loads its base from the Hub; push without --space, or set the "
            "base's id on the Hub in results.json (base_model_name_or_path), as training with --base_model_id does."
        )
