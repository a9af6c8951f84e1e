"""Try to get an erased concept back: `python -m evaluation.probes --adapter DIR` reports how often the judge
sees it again, and at what price.

Each probe is tried on the erased model and on the base without the adapter, which says how much the attempt
could find at most; plain prompts say how little comes back without any attempt. A probe that has been run is
not run again. docs/robustness.md explains probes, budgets and the threat model.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.command_line import number, positive_int
from common.errors import friendly_errors, friendly_interrupts
from common.files import write_aside
from common.memory import advised
from common.names import public_name
from common.versions import versions
from evaluation.choice import Choice, add_examination_arguments, choose
from evaluation.probes import attack, composition, inversion, paraphrase, relearning, removal
from evaluation.probes.rows import PROBES_NAME, Row, cell, save_samples
from evaluation.probes.settings import Settings
from evaluation.probes.subject import Subject
from evaluation.protocol import default_guidance
from hub.adapter import load_adapter
from hub.provenance import RESULTS_NAME, read_results
from pipelines.backbone import Backbone
from reward.concept.exemplars import read_images

PLAIN = "plain"
PROBES: dict[str, tuple[str, Callable[[Subject, Settings], list[Row]]]] = {
    PLAIN: (
        "plain prompts",
        lambda subject, settings: [subject.compare("plain prompts", subject.plain, settings.least_images)],
    ),
    "paraphrase": ("the concept in other words, and misspelt", paraphrase.run),
    "composition": ("the concept together with something else", composition.run),
    "inversion": ("an embedding learnt from images of the concept", inversion.run),
    "attack": ("words before the prompt, searched for with the model's gradients", attack.run),
    "relearning": ("fine-tuning, on the concept and on anything else", relearning.run),
    "removal": ("the adapter unloaded, weakened, fused, merged", removal.run),
}
"""What each probe tries, and the function that does; plain prompts always come first."""


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.probes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_examination_arguments(parser)
    named = [name for name in PROBES if name != PLAIN]
    parser.add_argument(
        "--probes",
        nargs="+",
        choices=named,
        default=named,
        metavar="NAME",
        help=f"Which probes are run, of {', '.join(named)}.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help=f"Where {PROBES_NAME} and the samples are written. Default: probes within --adapter.",
    )
    parser.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="Run again what has been run, for example with other budgets.",
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="Of everything that a probe draws at random."
    )
    parser.add_argument(
        "--num_images",
        type=positive_int,
        default=default.least_images,
        help="Each figure comes from at least as many images.",
    )
    parser.add_argument(
        "--concept_images",
        type=Path,
        metavar="DIR",
        help="Images of the concept to learn from. Default: the base draws them.",
    )
    parser.add_argument(
        "--num_concept_images",
        type=positive_int,
        default=default.concept_images,
        help="How many images are learnt from.",
    )
    parser.add_argument(
        "--train_batch_size",
        type=positive_int,
        default=default.batch_size,
        help="Noisy images in each optimizer step of a probe.",
    )
    parser.add_argument(
        "--inversion_tokens",
        type=positive_int,
        nargs="+",
        default=[*default.inversion_tokens],
        help="Lengths of the embedding, one attempt each.",
    )
    parser.add_argument(
        "--inversion_steps",
        type=positive_int,
        default=default.inversion_steps,
        help="Steps in which an embedding is learnt.",
    )
    parser.add_argument(
        "--inversion_learning_rate",
        type=number,
        default=default.inversion_learning_rate,
        help="In units of the vocabulary's root mean square; 0.04 is what 5e-4 is for Stable Diffusion 1.x.",
    )
    parser.add_argument(
        "--attack_tokens",
        type=positive_int,
        default=default.attack_tokens,
        help="Words that are searched for before a prompt.",
    )
    parser.add_argument(
        "--attack_steps",
        type=positive_int,
        default=default.attack_steps,
        help="Steps of the search, for each prompt.",
    )
    parser.add_argument(
        "--attack_prompts",
        type=positive_int,
        default=default.attack_prompts,
        help="At most so many prompts are attacked, evenly spaced.",
    )
    parser.add_argument(
        "--attack_learning_rate",
        type=number,
        default=default.attack_learning_rate,
        help="In units of the vocabulary's root mean square.",
    )
    parser.add_argument(
        "--relearning_steps",
        type=positive_int,
        nargs="+",
        default=[*default.relearning_steps],
        help="The concept is asked for after so many steps.",
    )
    parser.add_argument(
        "--relearning_rank",
        type=positive_int,
        default=default.relearning_rank,
        help="Of the LoRA that is fine-tuned.",
    )
    parser.add_argument(
        "--relearning_learning_rate",
        type=number,
        default=default.relearning_learning_rate,
        help="Of AdamW, for that LoRA.",
    )
    parser.add_argument(
        "--without_base",
        action="store_true",
        help="Leave the attempts on the base out, if another adapter's probes have them: half the time.",
    )
    parser.add_argument(
        "--merge_with",
        type=Path,
        metavar="DIR",
        help="Another adapter for the same base, for the probe of removal.",
    )
    args = parser.parse_args(input_args)
    if args.output_dir is None:
        if not Path(args.adapter).is_dir():
            parser.error("--output_dir is needed for an adapter on the Hub.")
        args.output_dir = Path(args.adapter) / "probes"
    return args


@advised("eval_batch_size", "train_batch_size")
def main(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    chosen = choose(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Settings(
        args.seed,
        args.num_images,
        args.num_concept_images,
        args.train_batch_size,
        tuple(args.inversion_tokens),
        args.inversion_steps,
        args.inversion_learning_rate,
        args.attack_tokens,
        args.attack_steps,
        args.attack_prompts,
        args.attack_learning_rate,
        tuple(args.relearning_steps),
        args.relearning_rank,
        args.relearning_learning_rate,
    )
    pipe = chosen.load_base(args)
    args.eval_batch_size = args.eval_batch_size or Backbone.of(pipe).usual_batch_size
    subject = Subject(
        pipe,
        load_adapter(pipe, args.adapter),
        chosen.concepts or [],
        chosen.examination,
        args.num_inference_steps or chosen.examination.num_inference_steps,
        chosen.examination.guidance_scale if args.guidance_scale is None else args.guidance_scale,
        args.eval_batch_size,
        read_images(args.concept_images) if args.concept_images else None,
        chosen.directory,
        args.merge_with,
        (False,) if args.without_base else (False, True),
    )
    said = described(subject, settings, chosen, args)
    with friendly_interrupts("The probes that are done are kept; the same command goes on."):
        found = run_probes(
            subject, settings, said, [PLAIN, *args.probes], args.output_dir, args.overwrite_output_dir
        )
    report = {**said, "probes": found}
    write_json(report, args.output_dir / PROBES_NAME)
    merge_into_results(report, chosen.directory)
    print(f"\n{table(report)}\nwrote {args.output_dir / PROBES_NAME}")


def described(
    subject: Subject, settings: Settings, chosen: Choice, args: argparse.Namespace
) -> dict[str, Any]:
    """What the figures depend on, as JSON."""
    guidance = default_guidance(subject.pipe) if subject.guidance_scale is None else subject.guidance_scale
    said = {
        "concept": subject.concepts,
        "base_model_name_or_path": public_name(chosen.base),
        "judge": chosen.examination.name,
        "protocol": chosen.examination.protocol,
        "adapter_sha256": hashlib.sha256(chosen.adapter.read_bytes()).hexdigest(),
        "num_inference_steps": subject.num_inference_steps,
        "guidance_scale": guidance,
        "mixed_precision": args.mixed_precision,
        "concept_images_from": args.concept_images.name if args.concept_images else "the base",
        "without_base": args.without_base,
        "merged_with": args.merge_with.resolve().name if args.merge_with else None,
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
    }
    return json.loads(json.dumps(said))


def run_probes(
    subject: Subject,
    settings: Settings,
    said: dict[str, Any],
    names: Sequence[str],
    directory: Path,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the probes that the directory has not; what each of them found, by name.

    Each leaves `probe-NAME.json` and a picture for each of its rows.

    Raises:
        ValueError: the directory holds a probe that was run under other circumstances.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in PROBES:
        path, circumstances = directory / f"probe-{name}.json", circumstances_of(name, said)
        known = None if overwrite and name in names else read_probe(path)
        if known is not None and known["circumstances"] != circumstances:
            if name not in names:
                continue
            differs = next(
                key for key in circumstances if known["circumstances"].get(key) != circumstances[key]
            )
            raise ValueError(
                f"{path} is of other circumstances ({differs} differs); choose another --output_dir, or add --overwrite_output_dir."
            )
        if known is None:
            if name not in names:
                continue
            tries, probe = PROBES[name]
            rows = probe(subject, settings)
            for number, row in enumerate(rows, start=1):
                save_samples(row, directory / f"probe-{name}-{number}.png")
            known = {"tries": tries, "rows": [row.as_json() for row in rows], "circumstances": circumstances}
            write_json(known, path)
        found[name] = {"tries": known["tries"], "rows": known["rows"]}
    return found


def circumstances_of(probe: str, said: dict[str, Any]) -> dict[str, Any]:
    """What the figures of one probe depend on: not the versions, nor the budgets of the others."""
    circumstances = {
        name: value
        for name, value in said.items()
        if name not in ("versions", "settings", "without_base", "merged_with")
    }
    own = (
        "merged_with" if probe == "removal" else "without_base"
    )  # removal compares with the base in any case
    circumstances[own] = said[own]
    others = tuple(f"{name}_" for name in PROBES if name != probe)
    return circumstances | {
        name: value for name, value in said["settings"].items() if not name.startswith(others)
    }


def read_probe(path: Path) -> dict[str, Any] | None:
    """What a probe found; None if it was not run, or its file is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and {"tries", "rows", "circumstances"} <= known.keys() else None


def merge_into_results(report: dict[str, Any], directory: Path) -> None:
    """Put the probes into the adapter's own results.json, if it has one, for its card and its report;
    `python -m hub card` writes the card anew."""
    path = directory / RESULTS_NAME
    if path.is_file():
        write_json({**read_results(directory), "probes": report}, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """Complete or not at all."""
    write_aside(
        path,
        lambda aside: aside.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        ),
    )


def table(report: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [
        f"{'the concept is seen, percent':46} {'with the adapter':>22} {'same on the base':>22} {'steps':>6} {'UNet samples':>13} {'seconds':>8}"
    ]
    for probe in report["probes"].values():
        for row in probe["rows"]:
            budget = row["budget"]
            spent = f"{budget['steps']:>6} {budget['unet_samples']:>13} {budget['seconds']:>8}"
            lines.append(f"{row['name']:46} {cell(row['adapter']):>22} {cell(row['base']):>22} {spent}")
    return "\n".join([*lines, f"judge: {report['judge']}; in brackets 95 % intervals"])


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
