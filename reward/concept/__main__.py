"""Print the spec that a concept is turned into, as YAML to be edited: `python -m reward.concept --concept
TEXT > spec.yaml`.

The prompts the base is known to draw come from its reward predictor or from a file; without either, for the
bundled base, from the bundled predictor, and for another CLIP from general vocabularies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import canvas
from common.errors import friendly_errors
from reward.arguments import add_concept_arguments, load_teachers, read_given, resolve_spec
from reward.concept import read_prompts, spec_to_yaml
from reward.concept.vocabulary import general_prompts
from reward.predictor import RewardPredictor


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m reward.concept",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_concept_arguments(parser)
    parser.add_argument(
        "--prompts",
        type=Path,
        help="Prompts the base draws, one a line, in place of those its reward predictor was trained on.",
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    given = read_given(args)
    if args.prompts:
        known = read_prompts(args.prompts)
    elif args.reward_model_name_or_path or not args.clip_model:
        known = RewardPredictor.from_pretrained(args.reward_model_name_or_path or canvas.REWARD).config[
            "prompts"
        ]
    else:
        known = general_prompts()
    _, text_teacher = load_teachers(args, given)
    spec, _ = resolve_spec(args, given, text_teacher, known)
    print(spec_to_yaml(spec), end="")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
