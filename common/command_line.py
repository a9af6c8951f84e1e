"""The parser of all commands: tokens are not repeated, and misspelt flags are told the nearest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from common.discretion import discreet, secrets_in


class DiscreetParser(argparse.ArgumentParser):
    """What it says of a mistake, which may end in a log, contains no token. Of a flag that it does not know,
    it says which one is meant.

    Attributes:
        elsewhere: what to say of flags, by name, that other programs have and this one does without.
        secret: its flags that a token comes after.
        given: the words of the command line.
    """

    elsewhere: Mapping[str, str] = {}
    secret: frozenset[str] = frozenset()
    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self.given, namespace)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs is None and arg_strings == ["--"]:  # argparse makes an empty list of it
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        secrets = list(secrets_in(self.given, self._option_string_actions, self.secret))
        super().error(discreet(message + self._meant(message), secrets))

    def _meant(self, message: str) -> str:
        """What to give in place of the flags that a message calls unrecognized."""
        if not message.startswith("unrecognized arguments:"):
            return ""
        said = []
        for flag in (word.partition("=")[0] for word in message.split() if word.startswith("--")):
            nearest = get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
            if advice := self.elsewhere.get(flag.removeprefix("--")):
                said.append(f"{flag}: {advice}")
            elif nearest:
                said.append(f"did you mean {nearest[0]}?")
        return "".join(f"; {text}" for text in said)
