"""Removal: what anyone who has the weights can do with an adapter without training."""

from __future__ import annotations

import tempfile
from pathlib import Path

from diffusers import DiffusionPipeline

from evaluation.probes.pipeline import twin
from evaluation.probes.rows import SAMPLES, Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from hub.adapter import load_adapter
from hub.fuse import fuse_adapter
from hub.merge import merge_adapters
from pipelines.generate import adapter_at

HALF = 0.5


def run(subject: Subject, settings: Settings) -> list[Row]:
    """Plain prompts with the adapter unloaded, at half its weight, fused into the weights (which must change
    nothing), and merged with another adapter if one is given."""
    with subject.side(base=True):
        unloaded, before = subject.look(subject.plain, settings.num_images, "unloaded")
    prompts = [prompt for _, prompt in subject.plain[:SAMPLES]]
    rows = [Row("unloaded", unloaded, unloaded, prompts=prompts, before=before, after=before)]

    def add(name: str, pipe: DiffusionPipeline | None = None) -> None:
        found, images = subject.look(subject.plain, settings.num_images, name, pipe)
        rows.append(Row(name, found, unloaded, prompts=prompts, before=before, after=images))

    with adapter_at(subject.pipe, HALF):
        add(f"at weight {HALF:g}")
    fused = twin(subject.pipe)
    fuse_adapter(fused, subject.adapter)
    add("fused into the weights", fused)
    if subject.merge_with and subject.adapter_dir:
        with tempfile.TemporaryDirectory() as aside:
            directory, merged = Path(aside) / "merged", twin(subject.pipe)
            merge_adapters([subject.adapter_dir, subject.merge_with], [1.0, 1.0], directory)
            merged.set_adapters([load_adapter(merged, directory)], [1.0])
            add("merged with another adapter", merged)
    return rows
