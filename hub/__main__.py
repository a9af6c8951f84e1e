"""Adapter files and what can be made of them: `python -m hub COMMAND`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.errors import friendly_errors
from common.flags import parse_command
from hub.commands import card, convert, fuse, merge, pull, push, space

COMMANDS = {
    "convert": convert.COMMAND,
    "fuse": fuse.COMMAND,
    "merge": merge.COMMAND,
    "push": push.COMMAND,
    "pull": pull.COMMAND,
    "card": card.COMMAND,
    "space": space.COMMAND,
}


def parse_config(arguments: Sequence[str] | None = None) -> Any:
    """The settings of the command that a command line names."""
    return parse_command(COMMANDS, arguments, __doc__, prog="python -m hub")


def main(config: Any) -> None:
    """Run the command that the settings are of."""
    next(command for command in COMMANDS.values() if command.config is type(config)).run(config)


if __name__ == "__main__":
    with friendly_errors():
        main(parse_config())
