"""`python -m hub card`: make the model card again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.flags import Command, flag
from hub.card import save_model_card
from hub.results import read_results


@dataclass(frozen=True)
class CardConfig:
    """Model card."""

    directory: Path = flag(positional=True, metavar="DIR", help="Directory with results.json.")


def run(config: CardConfig) -> None:
    """Write the card.

    Raises:
        ValueError: there are no results to make it from.
    """
    results = read_results(config.directory)
    if not results:
        raise ValueError(f"{config.directory} holds no results.json to make the card from.")
    print(f"wrote {save_model_card(results, config.directory)}")


COMMAND = Command(
    CardConfig,
    run,
    help="Make an adapter's README.md again.",
    description="Makes README.md again from results.json and keeps what was written by hand between its two "
    "comments.",
)
