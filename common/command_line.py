"""What the commands' parsers share: numbers that are refused with a sentence that names the flag, and
tokens that are not repeated."""

from __future__ import annotations

import argparse
import math
import re
from typing import NoReturn

TOKEN = re.compile(r"\bhf_\w+")


class DiscreetParser(argparse.ArgumentParser):
    """For commands that take a token: what it says of a mistake, which may end in a log, does not contain
    one."""

    def error(self, message: str) -> NoReturn:
        super().error(TOKEN.sub("hf_...", message))


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
