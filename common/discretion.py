"""What may be said aloud: error messages end in logs, so no token is in one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches

TOKEN = re.compile(
    r"""
    ( hf_ | api_org_ | eyJ ) [^\s'"`,;:()\[\]{}<>]+  # of the Hub, of an organization on it, a JSON web token
    | ( \b (?i:bearer) \s+ ) [^\s'"`]+
    | ( :/{1,2} | // ) [^/@\s]+ (?= @ )  # who asks, in an address
    """,
    re.VERBOSE,
)
"""What is a token by its look."""
FLAGS = ("hub_token", "hf_token", "token", "api_key", "password", "secret")
"""Names of flags that a token comes after, whether or not a command has them."""
SHORTEST = 3
"""Letters of an abbreviation that is taken for one of these."""
TELLING = 4
"""Letters of a secret that is left out wherever it stands; a shorter one only where it is a word."""


def discreet(text: str, secrets: Collection[str] = ()) -> str:
    """A text without tokens.

    Args:
        secrets: further words that are left out, whatever they look like.
    """
    text = TOKEN.sub(lambda found: f"{found[found.lastindex or 0]}...", text)
    spelt = {said for word in secrets for said in (word, repr(word)[1:-1]) if said.strip()}
    for secret in sorted(spelt, key=len, reverse=True):
        word = re.escape(secret)
        text = re.sub(word if len(secret) >= TELLING else rf"(?<!\w){word}(?!\w)", "...", text)
    return text


def secrets_in(words: Iterable[str], known: Collection[str], secret: Collection[str]) -> Iterator[str]:
    """What may be a token in a command line: the words after a flag for one, whether that is spelt out,
    abbreviated, misspelt or no flag of this command, up to the next flag that it has; and what looks like a
    token, without its beginning, since a parser may take letters off a word.

    Args:
        known: the command's flags, such as "--seed".
        secret: those of them that a token comes after.
    """
    after = False
    for word in words:
        yield from (found[0].removeprefix(found[found.lastindex or 0]) for found in TOKEN.finditer(word))
        flag, _, value = word.partition("=")
        harmless = flag in known and flag not in secret
        if flag.startswith("-") and not harmless and _asks_for_a_token(flag, known, secret):
            after = True
            yield value
            yield from re.findall("(?i)token(.+)", flag)  # the space between them may be missing
        elif harmless:
            after = False
        elif after:
            yield word


def _asks_for_a_token(flag: str, known: Collection[str], secret: Collection[str]) -> bool:
    if any(other.startswith(flag) for other in secret):
        return True
    name = flag.lstrip("-").replace("-", "_").casefold()
    if len(name) < SHORTEST or any(other.startswith(flag) for other in known):
        return False
    return (
        "token" in name
        or any(whole.startswith(name) for whole in FLAGS)
        or bool(get_close_matches(name, FLAGS, 1, 0.75))
    )
