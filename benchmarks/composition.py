"""What several adapters do together on the bundled canvas: `python -m benchmarks.composition`.

Pairs of erasers: each alone, both by `set_adapters` at weight 1 and at 0.7, and merged into one file, at the
    sum of their ranks and at rank 8.
And erasers beside a style LoRA that owes nothing to this project (`benchmarks.style`): of a style that stays,
and of the erased one under another word. An eraser that is not there yet is trained by the training script
with its defaults, in `OUTPUT_DIR/<concept>-<seed>`; what has been trained is not trained again. The bundled
judge says UA of each concept, IRA and CRA of what was not to be erased, and where prompts name a style LoRA's
trigger word, how often its style is drawn. Written are composition.json and composition.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm

import benchmarks.canvas as erasers
import benchmarks.style as styles
import canvas
from benchmarks.jobs import run_job
from common.files import write_aside
from evaluation.examination import JudgeExamination
from evaluation.judge import Judge, to_pixels
from hub.adapter import load_adapter
from hub.merge import merge_adapters
from pipelines.base import load_pipeline
from pipelines.generate import evaluation_mode, generate

PAIRS = ["Van Gogh style + cat", "Neon style + Mosaic style"]
STYLE_PAIRS = ["Van Gogh style + Blueprint", "cat + Blueprint", "Neon style + Neon"]
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
                self.pipe.set_adapters(
                    [load_adapter(self.pipe, path) for path, _ in adapters],
                    [weight for _, weight in adapters],
                )
            with evaluation_mode(self.pipe):
                images = [
                    image for _, _, image in generate(self.pipe, prompts, self.seeds, progress="drawing")
                ]
            self.pipe.unload_lora_weights()
            predicted = self.judge.predict(to_pixels(images))
            self._seen[key] = [
                {domain: names[predicted[domain][i]] for domain, names in self.judge.domains.items()}
                for i in range(len(images))
            ]
        return self._seen[key]

    def figures(self, adapters: Weighted, concepts: Sequence[str]) -> Row:
        """UA of each concept, IRA and CRA of what none of them names, in percent."""
        both, *single = (
            JudgeExamination(self.judge, named, "")
            for named in [concepts, *([concept] for concept in concepts)]
        )
        verdicts, order = (
            self.verdicts(adapters, both.prompts),
            list(range(len(both.prompts))) * len(self.seeds),
        )
        rest = both.figures(verdicts, order)
        ua = {
            concept: of.figures(verdicts, order)["UA"] for concept, of in zip(concepts, single, strict=True)
        }
        return {"UA": ua, "IRA": rest["IRA"], "CRA": rest["CRA"]}

    def trigger_figures(self, adapters: Weighted, style: str, concept: str) -> Row:
        """`shares_under_trigger` where the style LoRA's word is named."""
        prompts = styles.trigger_prompts()
        erased = JudgeExamination(self.judge, [concept], "").targets.get("object", set())
        return shares_under_trigger(
            style,
            erased,
            [name for _, name in prompts] * len(self.seeds),
            self.verdicts(adapters, [p for p, _ in prompts]),
        )


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


def find_eraser(concept: str, args: argparse.Namespace) -> Path:
    """The directory of a finished run, trained here if there is none."""
    name = f"{erasers.slug(concept)}-{args.train_seed}"
    for directory in (args.adapters_from, args.output_dir):
        if directory and (directory / name / "results.json").is_file():
            return directory / name
    run_job(
        erasers.training(concept, args.train_seed, erasers.parse_args(["--output_dir", str(args.output_dir)]))
    )
    return args.output_dir / name


def find_style(style: str, args: argparse.Namespace) -> Path:
    """The directory of a style LoRA, trained here if there is none."""
    directory = args.output_dir / f"style-{erasers.slug(style)}-{args.train_seed}"
    if not any(directory.glob("*.safetensors")):
        styles.main(
            styles.parse_args(
                ["--style", style, "--seed", str(args.train_seed), "--output_dir", str(directory)]
            )
        )
    return directory


def compose_erasers(pair: str, easel: Easel, args: argparse.Namespace) -> list[Row]:
    """The rows of one pair of erasers, the base first."""
    concepts = pair.split(" + ")
    paths = [find_eraser(concept, args) for concept in concepts]
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
        bar = tqdm(settings.items(), desc=pair)
        return [
            {"concepts": concepts, "adapters": name} | easel.figures(adapters, concepts)
            for name, adapters in bar
        ]


def compose_with_style(pair: str, easel: Easel, args: argparse.Namespace) -> list[Row]:
    """The rows of an eraser, a style LoRA, and both."""
    concept, style = pair.split(" + ")
    eraser, foreign = (find_eraser(concept, args), 1.0), (find_style(style, args), 1.0)
    settings: dict[str, Weighted] = {
        "base": (),
        "eraser": (eraser,),
        "style LoRA": (foreign,),
        "both": (eraser, foreign),
    }
    return [
        {"concept": concept, "style": style, "adapters": name}
        | easel.figures(adapters, [concept])
        | {"by the trigger": easel.trigger_figures(adapters, style, concept)}
        for name, adapters in tqdm(settings.items(), desc=pair)
    ]


def table_of_erasers(rows: Sequence[Row]) -> str:
    """Markdown: two concepts a row."""
    lines = [
        "| erasers | adapters | UA of the first | UA of the second | IRA | CRA |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ua = (row["UA"][concept] for concept in row["concepts"])
        lines.append(
            f"| {' + '.join(row['concepts'])} | {row['adapters']} | {_cells([*ua, row['IRA'], row['CRA']])} |"
        )
    return "\n".join(lines)


def table_of_styles(rows: Sequence[Row]) -> str:
    """Markdown: one concept and one style LoRA a row."""
    lines = [
        "| erased | style LoRA | adapters | UA | IRA | CRA | style, by its word | UA, by its word |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        word: Mapping[str, float | None] = row["by the trigger"]
        figures = [row["UA"][row["concept"]], row["IRA"], row["CRA"], word["style"], word["trigger UA"]]
        lines.append(f"| {row['concept']} | {row['style']} | {row['adapters']} | {_cells(figures)} |")
    return "\n".join(lines)


def _cells(figures: Sequence[float | None]) -> str:
    return " | ".join("–" if figure is None else f"{figure:.1f}" for figure in figures)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.composition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help='Pairs of erasers, each as "A + B".')
    parser.add_argument(
        "--style_pairs",
        nargs="*",
        default=STYLE_PAIRS,
        help='Erasers and the styles of the LoRAs beside them, each as "A + B".',
    )
    parser.add_argument(
        "--adapters_from",
        type=Path,
        metavar="DIR",
        help="Take the erasers that benchmarks.canvas has trained in this folder.",
    )
    parser.add_argument("--train_seed", type=int, default=0, help="Seed that the adapters are trained with.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="One image a prompt and seed.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/composition"),
        help="Where adapters, tables and JSON are written.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    easel = Easel(args.seeds)
    of_erasers = [row for pair in args.pairs for row in compose_erasers(pair, easel, args)]
    of_styles = [row for pair in args.style_pairs for row in compose_with_style(pair, easel, args)]
    content = {"train_seed": args.train_seed, "seeds": args.seeds, "erasers": of_erasers, "styles": of_styles}
    tables = [table_of_erasers(of_erasers), *([table_of_styles(of_styles)] if of_styles else [])]
    text = "\n\n".join(tables) + "\n"
    write_aside(
        args.output_dir / "composition.json",
        lambda path: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"),
    )
    write_aside(args.output_dir / "composition.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":
    main(parse_args())
