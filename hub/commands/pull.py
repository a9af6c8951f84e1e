"""`python -m hub pull`: what `python -m hub push` uploaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from hub.pull import pull


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "pull",
        help="Fetch an adapter, a reward predictor or a critic from the Hub.",
        description="Fetches an adapter with its card, figures and picture, or a reward predictor or critic, from the Hub, and nothing else.",
    )
    parser.add_argument("repo_id", metavar="ID", help="Repository on the Hub, OWNER/NAME.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Where it is written: a new or an empty directory.",
    )
    parser.add_argument("--revision", help="Branch, tag or commit. Default: main.")
    parser.add_argument(
        "--hub_token",
        help="Token for a private repository. Default: the one of `hf auth login` or of HF_TOKEN, if there is any.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fetch.

    Raises:
        ValueError: there is nothing to fetch, it cannot be fetched, or the output would replace something.
    """
    names = pull(args.repo_id, args.output_dir, revision=args.revision, token=args.hub_token)
    print(f"wrote {args.output_dir}: {', '.join(names)}.")
