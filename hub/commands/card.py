"""`python -m hub card`: the model card again."""

from __future__ import annotations

import argparse
from pathlib import Path

from hub.card import save_model_card
from hub.provenance import read_results


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "card",
        help="Make an adapter's README.md again.",
        description="Makes README.md again from results.json; what was written by hand between its two comments is kept.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="Directory with results.json.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the card.

    Raises:
        ValueError: there are no results to make it from.
    """
    results = read_results(args.directory)
    if not results:
        raise ValueError(f"{args.directory} holds no results.json to make the card from.")
    print(f"wrote {save_model_card(results, args.directory)}")
