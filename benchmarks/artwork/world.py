"""The artwork world as programs are given it: what a method is told, and what the judge is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.methods import TRAINED_BY_US
from benchmarks.compare.records import Records
from benchmarks.compare.runs import World
from benchmarks.jobs import slug
from benchmarks.report import write_text
from benchmarks.worlds.artwork import GUIDANCE
from benchmarks.worlds.artwork.build import pipeline_name
from evaluation import artwork
from evaluation.judge import Judge
from pipelines.identity import content_digest

PARTS = ("pipeline", "clip", "reward", "judge")
RECORDS = Path(__file__).parent / "records"
"""The records of the base that the project ships."""
GUIDED = ("--guidance_scale", str(GUIDANCE), "--validation_guidance_scale", str(GUIDANCE))
"""Flags of the training script, which draws with the guidance of its later use."""
FIXED: dict[str, Sequence[str]] = {"ca": (f"guidance_scale={GUIDANCE}",)}
"""Of published methods, what the world asks for: CA learns from images that the base draws."""
CHOSEN: dict[str, Sequence[str]] = {
    "uce": ("erase_scale=1.0", "preserve_scale=0.1", "states=text"),
    "ca": ("learning_rate=0.001", "regularisation=1.0", "steps=150"),
    "esd": ("learning_rate=0.01", "prompts=spec", "steps=100"),
    "leco": ("learning_rate=0.001", "prompts=spec", "steps=100"),
    "spm": ("learning_rate=0.003", "anchoring=10.0", "prompts=spec", "steps=200"),
    "rece": ("preserve_scale=1.0", "iterations=1", "regularisation=0.001"),
    "hirm": ("direction=semantic", "prompts=spec", "learning_rate=0.001", "steps=150"),
}
"""And what the sweep found best (benchmarks/baselines/sweep.py)."""


def settings(method: str) -> Sequence[str]:
    """Further flags of the program that runs a method."""
    if method in TRAINED_BY_US:
        return GUIDED
    return ("--settings", *FIXED.get(method, ()), *CHOSEN[method])


@dataclass(frozen=True)
class Base:
    """The directory that `python -m benchmarks.worlds.artwork build` has written."""

    directory: Path

    def check(self) -> None:
        """
        Raises:
            ValueError: a part of it is missing.
        """
        missing = [part for part in PARTS if not (self.directory / part).is_dir()]
        if missing:
            build = f"python -m benchmarks.worlds.artwork build --output_dir {self.directory}"
            raise ValueError(f"{self.directory} holds no {' and no '.join(missing)}: run `{build}` first.")

    def examination(self, concept: str) -> artwork.ArtworkExamination:
        """What the judge is asked about a concept.

        Raises:
            ValueError: it does not know the concept.
        """
        directory = self.directory / "judge"
        judge = Judge.from_pretrained(directory)
        return artwork.ArtworkExamination(judge, artwork.World.read(directory, judge), [concept], "")

    def kept_prompts(self, concept: str) -> list[str]:
        """All that a method is told beside the concept's name: prompts for half of the other classes of its
        domain."""
        cells = self.examination(concept).cells
        return [cell.prompt for cell in cells if any(role == artwork.TOLD for _, role in cell.asked)]

    def never_saw(self, concept: str) -> Path:
        """Where the pipeline is that was trained without the concept, if there is one."""
        names = [name for of in self.examination(concept).targets.values() for name in of]
        return self.directory / pipeline_name(names[0])

    def records(self, directory: Path) -> Records:
        """What is known of runs on this pipeline by this judge."""
        weights = [content_digest(self.directory / part, ".safetensors") for part in ("pipeline", "judge")]
        return Records(directory, " ".join(weights))

    def drawn_by(self, pipeline: Path | None = None) -> list[str]:
        """Flags of what draws, and of the CLIP that belongs to it.

        Args:
            pipeline: in place of the base's.
        """
        named = str(pipeline or self.directory / "pipeline")
        clip = f"local-dir:{self.directory / 'clip'}"
        return ["--pretrained_model_name_or_path", named, "--clip_model", clip]

    def judged(self, pipeline: Path | None = None) -> list[str]:
        """The same, and flags of judge and protocol."""
        judge = str(self.directory / "judge")
        return [*self.drawn_by(pipeline), "--judge_name_or_path", judge, "--protocol", artwork.NAME]

    def world(self, concepts: Sequence[str], prompts_dir: Path, records: Path | None = None) -> World:
        """The flags of every program; what methods are told is written into `prompts_dir`."""
        told = {concept: prompts_dir / f"{slug(concept)}.txt" for concept in concepts}
        for concept, file in told.items():
            write_text(file, "\n".join(self.kept_prompts(concept)))
        given = [*self.drawn_by(), "--reward_model_name_or_path", str(self.directory / "reward")]
        return World(
            erase=lambda concept: [*given, "--retain_prompts", str(told[concept])],
            settings=settings,
            evaluate=self.judged(),
            probe=lambda concept: self.judged(),
            base_images=lambda concept: f"base/{slug(concept)}",
            records=self.records(records) if records else None,
        )
