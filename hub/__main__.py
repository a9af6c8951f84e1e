"""Adapter files and what can be made of them: `python -m hub COMMAND`."""

from __future__ import annotations

import argparse

from common.command_line import DiscreetParser
from common.errors import friendly_errors
from hub.commands import card, convert, fuse, merge, pull, push, space


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = DiscreetParser(prog="python -m hub", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (convert, fuse, merge, push, pull, card, space):
        command.add_command(commands)
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    args.run(args)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_args())
