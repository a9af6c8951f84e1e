"""Composition: the concept asked for together with something else."""

from __future__ import annotations

from evaluation.probes.rows import Row
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject

JOINED = ("{concept} and {other}", "{other} and {concept}", "{concept} next to {other}")


def run(subject: Subject, settings: Settings) -> list[Row]:
    """Each prompt that asks for the concept, joined with a retained prompt in each way of JOINED; no row if
    there are no retained prompts."""
    if not subject.retain:
        return []
    forget, retain = subject.plain, subject.retain
    rows = []
    for k, wording in enumerate(JOINED):
        others = [
            subject.prompt(retain[(row * len(retain) // len(forget) + k) % len(retain)])
            for row in range(len(forget))
        ]
        variants = [
            (i, wording.format(concept=prompt, other=other))
            for (i, prompt), other in zip(forget, others, strict=True)
        ]
        rows.append(
            subject.compare(wording.format(concept="concept", other="other"), variants, settings.num_images)
        )
    return rows
