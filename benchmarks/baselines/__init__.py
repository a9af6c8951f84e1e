"""Published methods of concept erasure, each as a LoRA in this project's format: docs/baselines.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.baselines import ca, esd, hirm, leco, rece, spm, uce


class Method(NamedTuple):
    """What it is called in results and cards, its settings, what leaves its adapter on a pipeline, and
    whether it is one for UNets alone."""

    title: str
    settings: type
    erase: Callable[..., dict[str, Any]]
    needs_unet: bool


METHODS = {
    name: Method(m.TITLE, m.Settings, m.erase, needs_unet=m in (rece, hirm))
    for name, m in {
        "esd": esd,
        "uce": uce,
        "ca": ca,
        "leco": leco,
        "spm": spm,
        "rece": rece,
        "hirm": hirm,
    }.items()
}
