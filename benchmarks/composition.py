"""What several adapters do together on the bundled canvas: `python -m benchmarks.composition`.

Pairs of erasers: each alone, both by `set_adapters` at weight 1 and at 0.7, and merged into one file, at the
sum of their ranks and at rank 8. And erasers beside a style LoRA that owes nothing to this project
(`benchmarks.style`): of a style that stays, and of the erased one under another word. An eraser that is not
there yet is trained by the training script with its defaults, in `OUTPUT_DIR/<concept>-<seed>`; what has been
trained is not trained again. The bundled judge says UA of each concept, IRA and CRA of what was not to be
erased, and where prompts name a style LoRA's trigger word, how often its style is drawn. Written are
composition.json and composition.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm

import benchmarks.canvas as erasers
import benchmarks.style as styles
import canvas
from benchmarks.jobs import run_job, slug
from benchmarks.report import markdown, number, write_json, write_text
from common.errors import friendly_errors
from common.flags import IMAGE_SEED, SEED, flag, parse
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge, to_pixels
from hub.adapter import load_adapter
from hub.merge import merge_adapters
from pipelines.base import load_pipeline
from pipelines.generate import evaluation_mode, generate

PAIRS = ("Van Gogh style + cat", "Neon style + Mosaic style")
STYLE_PAIRS = ("Van Gogh style + Blueprint", "cat + Blueprint", "Neon style + Neon")
LOW_RANK = 8

Weighted = tuple[tuple[Path, float], ...]
"""Adapters and their weights; empty is the base."""
Verdicts = list[dict[str, str]]
Row = dict[str, Any]


class Easel:
    """The bundled pipeline, on which adapters are put, and the judge of what they draw; nothing is drawn
    twice."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.pipe = load_pipeline(canvas.PIPELINE)
        self.judge = Judge.from_pretrained(canvas.JUDGE)
        self._seen: dict[tuple[Weighted, tuple[str, ...]], Verdicts] = {}

    def verdicts(self, adapters: Weighted, prompts: Sequence[str]) -> Verdicts:
        """The class of each domain that the judge sees, for every prompt, seed after seed."""
        key = (adapters, tuple(prompts))
        if key not in self._seen:
            if adapters:
                names = [load_adapter(self.pipe, path) for path, _ in adapters]
                self.pipe.set_adapters(names, [weight for _, weight in adapters])
            with evaluation_mode(self.pipe):
                drawn = generate(self.pipe, prompts, self.seeds, progress="drawing")
                images = [image for _, _, image in drawn]
            self.pipe.unload_lora_weights()
            predicted = self.judge.predict(to_pixels(images))
            self._seen[key] = [
                {domain: names[predicted[domain][i]] for domain, names in self.judge.domains.items()}
                for i in range(len(images))
            ]
        return self._seen[key]

    def metrics(self, adapters: Weighted, concepts: Sequence[str]) -> Row:
        """UA of each concept, IRA and CRA of what none of them names, in percent."""
        together = JudgeExamination(self.judge, concepts, "")
        verdicts = self.verdicts(adapters, together.prompts)
        order = list(range(len(together.prompts))) * len(self.seeds)
        rest, ua = together.metrics(verdicts, order), {}
        for concept in concepts:
            alone = JudgeExamination(self.judge, [concept], "")
            ua[concept] = alone.metrics(verdicts, order)["UA"]
        return {"UA": ua, "IRA": rest["IRA"], "CRA": rest["CRA"]}

    def trigger_metrics(self, adapters: Weighted, style: str, concept: str) -> Row:
        """`shares_under_trigger` where the style LoRA's word is named."""
        prompts = styles.trigger_prompts()
        erased = JudgeExamination(self.judge, [concept], "").targets.get("object", set())
        objects = [name for _, name in prompts] * len(self.seeds)
        verdicts = self.verdicts(adapters, [prompt for prompt, _ in prompts])
        return shares_under_trigger(style, erased, objects, verdicts)


def shares_under_trigger(style: str, erased: set[str], objects: Sequence[str], verdicts: Verdicts) -> Row:
    """Of images asked for by the trigger word, in percent: those in the style; those of an erased object that
    do not show it, None if there are none.

    Args:
        erased: objects that were to be erased.
        objects: for each image, the object its prompt names.
        verdicts: for each image, the style and the object that the judge sees.
    """
    absent = [seen["object"] != name for name, seen in zip(objects, verdicts, strict=True) if name in erased]
    return {
        "style": 100 * fmean(seen["style"] == style for seen in verdicts),
        "trigger UA": 100 * fmean(absent) if absent else None,
    }


@dataclass(frozen=True)
class CompositionConfig:
    """Compositions."""

    pairs: tuple[str, ...] = flag(PAIRS, help='Pairs of erasers, each as "A + B".')
    style_pairs: tuple[str, ...] = flag(
        STYLE_PAIRS,
        nargs="*",
        help='Erasers and the styles of the LoRAs beside them, each as "A + B".',
    )
    adapters_from: Path | None = flag(
        None, metavar="DIR", help="Take the erasers that benchmarks.canvas has trained in this folder."
    )
    train_seed: int = flag(0, within=SEED, help="Seed that the adapters are trained with.")
    seeds: tuple[int, ...] = flag((0, 1), within=IMAGE_SEED, help="One image for each prompt and seed.")
    output_dir: Path = flag(Path("runs/composition"), help="Where adapters, tables and JSON are written.")


def find_eraser(concept: str, config: CompositionConfig) -> Path:
    """The directory of a finished run, trained here if there is none."""
    name = f"{slug(concept)}-{config.train_seed}"
    for directory in (config.adapters_from, config.output_dir):
        if directory and (directory / name / "results.json").is_file():
            return directory / name
    runs = erasers.parse_config(["--output_dir", str(config.output_dir)])
    run_job(erasers.training(concept, config.train_seed, runs))
    return config.output_dir / name


def find_style(style: str, config: CompositionConfig) -> Path:
    """The directory of a style LoRA, trained here if there is none."""
    directory = config.output_dir / f"style-{slug(style)}-{config.train_seed}"
    if not any(directory.glob("*.safetensors")):
        given = ["--style", style, "--seed", str(config.train_seed), "--output_dir", str(directory)]
        styles.main(styles.parse_config(given))
    return directory


def compose_erasers(pair: str, easel: Easel, config: CompositionConfig) -> list[Row]:
    """The rows of one pair of erasers, the base first."""
    concepts = pair.split(" + ")
    paths = [find_eraser(concept, config) for concept in concepts]
    with tempfile.TemporaryDirectory() as directory:
        merged, low = Path(directory) / "merged", Path(directory) / "low"
        merge_adapters(paths, [1.0, 1.0], merged)
        error = merge_adapters(paths, [1.0, 1.0], low, LOW_RANK)["relative_error"]
        settings: dict[str, Weighted] = {
            "base": (),
            **{f"{concept} alone": ((path, 1.0),) for concept, path in zip(concepts, paths, strict=True)},
            "both, weight 1": tuple((path, 1.0) for path in paths),
            "both, weight 0.7": tuple((path, 0.7) for path in paths),
            "merged": ((merged, 1.0),),
            f"merged at rank {LOW_RANK}, error {error:.2f}": ((low, 1.0),),
        }
        return [
            {"concepts": concepts, "adapters": name} | easel.metrics(adapters, concepts)
            for name, adapters in tqdm(settings.items(), desc=pair)
        ]


def compose_with_style(pair: str, easel: Easel, config: CompositionConfig) -> list[Row]:
    """The rows of an eraser, a style LoRA, and both."""
    concept, style = pair.split(" + ")
    eraser, foreign = (find_eraser(concept, config), 1.0), (find_style(style, config), 1.0)
    settings: dict[str, Weighted] = {
        "base": (),
        "eraser": (eraser,),
        "style LoRA": (foreign,),
        "both": (eraser, foreign),
    }
    return [
        {"concept": concept, "style": style, "adapters": name}
        | easel.metrics(adapters, [concept])
        | {"by the trigger": easel.trigger_metrics(adapters, style, concept)}
        for name, adapters in tqdm(settings.items(), desc=pair)
    ]


def table_of_erasers(rows: Sequence[Row]) -> str:
    """Markdown: two concepts a row."""
    lines = []
    for row in rows:
        metrics = [*(row["UA"][concept] for concept in row["concepts"]), row["IRA"], row["CRA"]]
        lines.append([" + ".join(row["concepts"]), row["adapters"], *map(number, metrics)])
    header = ["erasers", "adapters", "UA of the first", "UA of the second", "IRA", "CRA"]
    return markdown(header, lines)


def table_of_styles(rows: Sequence[Row]) -> str:
    """Markdown: one concept and one style LoRA a row."""
    lines = []
    for row in rows:
        word: Mapping[str, float | None] = row["by the trigger"]
        metrics = [row["UA"][row["concept"]], row["IRA"], row["CRA"], word["style"], word["trigger UA"]]
        lines.append([row["concept"], row["style"], row["adapters"], *map(number, metrics)])
    header = ["erased", "style LoRA", "adapters", "UA", "IRA", "CRA", "style, by its word", "UA, by its word"]
    return markdown(header, lines)


def parse_config(arguments: Sequence[str] | None = None) -> CompositionConfig:
    """The settings of a command line."""
    return parse(CompositionConfig, arguments, __doc__, prog="python -m benchmarks.composition")


def main(config: CompositionConfig) -> None:
    easel = Easel(config.seeds)
    of_erasers = [row for pair in config.pairs for row in compose_erasers(pair, easel, config)]
    of_styles = [row for pair in config.style_pairs for row in compose_with_style(pair, easel, config)]
    content = {
        "train_seed": config.train_seed,
        "seeds": config.seeds,
        "erasers": of_erasers,
        "styles": of_styles,
    }
    tables = [table_of_erasers(of_erasers), *([table_of_styles(of_styles)] if of_styles else [])]
    text = "\n\n".join(tables)
    write_json(config.output_dir / "composition.json", content)
    write_text(config.output_dir / "composition.md", text)
    print(text)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
