"""What the commands' parsers share: numbers that are refused with a sentence that names the flag, and
tokens that are not repeated."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NoReturn

TOKEN = re.compile(r"\bhf_\w+")


class DiscreetParser(argparse.ArgumentParser):
    """For commands that take a token: what it says of a mistake, which may end in a log, does not contain
    one. Of a flag that it does not know it says which one is meant.

    Attributes:
        elsewhere: what to say of flags, by name, that other programs have and this one does without.
    """

    elsewhere: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        super().error(TOKEN.sub("hf_...", message + self._meant(message)))

    def _meant(self, message: str) -> str:
        """What to give in place of the flags that a message calls unrecognized."""
        if not message.startswith("unrecognized arguments:"):
            return ""
        known = [option for action in self._actions for option in action.option_strings]
        said = []
        for flag in (word.partition("=")[0] for word in message.split() if word.startswith("--")):
            nearest = get_close_matches(flag, known, n=1, cutoff=0.75)
            if advice := self.elsewhere.get(flag.removeprefix("--")):
                said.append(f"{flag}: {advice}")
            elif nearest:
                said.append(f"did you mean {nearest[0]}?")
        return "".join(f"; {text}" for text in said)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def whole_number(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {value}")
    return value


def weight(text: str) -> float:
    """A finite number of at least 0."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value
