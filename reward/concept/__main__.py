"""Print the spec that a concept is turned into, as YAML to be edited:
`python -m reward.concept --concept TEXT > spec.yaml`.

The prompts the base is known to draw come from its reward predictor or from a file; without either, for the
bundled base, from the bundled predictor, and for another CLIP from general vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import canvas
from common.errors import friendly_errors
from common.flags import flag, parse
from reward.arguments import ConceptConfig, RewardConfig, load_teachers, read_inputs, resolve_spec
from reward.concept import read_prompts, spec_to_yaml
from reward.concept.vocabulary import general_prompts
from reward.predictor import RewardPredictor


@dataclass(frozen=True)
class PromptConfig:
    """Prompts."""

    prompts: Path | None = flag(
        None,
        help="Prompts the base draws, one a line, in place of those its reward predictor was trained on.",
    )


@dataclass(frozen=True)
class SpecConfig:
    """All settings of a spec."""

    concept: ConceptConfig
    reward: RewardConfig
    known: PromptConfig


def parse_config(arguments: Sequence[str] | None = None) -> SpecConfig:
    """The settings of a command line."""
    return parse(SpecConfig, arguments, __doc__, prog="python -m reward.concept")


def main(config: SpecConfig) -> None:
    inputs = read_inputs(config.concept, config.reward)
    if config.known.prompts:
        known = read_prompts(config.known.prompts)
    elif config.reward.reward_model_name_or_path or not config.reward.clip_model:
        predictor = RewardPredictor.from_pretrained(config.reward.reward_model_name_or_path or canvas.REWARD)
        known = predictor.config["prompts"]
    else:
        known = general_prompts()
    _, text_teacher = load_teachers(config.reward, inputs, bundled=True)
    spec, _ = resolve_spec(config.concept, inputs, text_teacher, known)
    print(spec_to_yaml(spec), end="")


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
