"""Why the Hub, or the way to it, failed: in words that name the cause and never a secret."""

from __future__ import annotations

import json
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from safetensors import SafetensorError

from common.discretion import discreet

REASONS = {
    401: "the Hub does not accept the token (401), so run `hf auth login` again",
    403: "the token may not do this (403), so use one that has access to the repository, to write if you upload",
    404: "the Hub finds no such repository, revision or file, or the token may not see it (404)",
    409: "something else is changing the repository (409)",
    412: "the repository has changed meanwhile (412)",
    429: "the Hub takes no more requests for now (429)",
}
"""Why the Hub refused, by HTTP status."""
AWAY = {408, 425, 429, *range(500, 600)}
"""HTTP statuses of a Hub that may answer later."""
INSTEAD = "try again later, or name a copy on this machine"
HUB_ERRORS = (HTTPError, OSError, ValueError, LookupError, RuntimeError)
"""What the Hub's client raises where the Hub is away or refuses, within `readable_answers`."""
LOAD_ERRORS = (*HUB_ERRORS, TypeError, AttributeError, ImportError, httpx.InvalidURL, SafetensorError)
"""What the loaders raise that use it, where what came is no such thing too, or needs a package that is
missing."""
UNREADABLE = "the Hub's answer cannot be read"
OFFLINE = "the Hub is switched off by HF_HUB_OFFLINE or --local_files_only"


class UnreadableAnswer(ValueError):
    """The Hub has answered something else than its client takes."""

    def __init__(self) -> None:
        super().__init__(UNREADABLE)


@contextmanager
def readable_answers() -> Iterator[None]:
    """Within: what the client breaks at, since it takes every answer for what it should be, is an answer that
    cannot be read; a bug of ours stays one.

    Raises:
        UnreadableAnswer: the client broke.
    """
    try:
        yield
    except (
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        RecursionError,
        httpx.InvalidURL,
    ) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if any(frame.f_globals.get("__name__", "").startswith("huggingface_hub") for frame, _ in frames):
            raise UnreadableAnswer from error
        raise


def reason_of(error: BaseException) -> str:
    """Why it failed, as the middle of a sentence: an error of the Hub's client, of the network or our own."""
    if isinstance(error, HFValidationError):
        return "it is not a repository id, which is NAME or OWNER/NAME in letters, digits, dots, - and _"
    if isinstance(error, LookupError | json.JSONDecodeError):
        return UNREADABLE
    if isinstance(error, ValueError):
        return _said(error)
    return hub_reason(error) or _said(error)


def hub_reason(error: BaseException) -> str:
    """What the Hub or the network said, if that is behind the error; else empty."""
    for link in _causes(error):
        if isinstance(link, HfHubHTTPError):
            status, message = link.response.status_code, _discreet(link.server_message or "", 240)
            if status >= 500 or status not in REASONS:
                failed = "the Hub itself failed" if status >= 500 else "the Hub refused"
                return f"{failed} ({status}: {message or 'it does not say why'})"
            return REASONS[status] + (f"; it says: {message}" if message else "")
        if isinstance(link, OfflineModeIsEnabled):
            return OFFLINE
        if isinstance(link, httpx.TimeoutException):
            return f"the Hub does not answer, or too slowly ({type(link).__name__}: {_said(link)})"
        if isinstance(link, HTTPError):
            return f"the Hub cannot be reached or broke off ({type(link).__name__}: {_said(link)})"
    return ""


def why_not_loaded(error: BaseException) -> str:
    """Why something that may come from the Hub could not be loaded, in one line, and what to do where the Hub
    is away."""
    reason = hub_reason(error) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason + instead(error)


def instead(error: BaseException) -> str:
    """What to do where the Hub is away, as the end of a sentence; else empty."""
    return f"; {INSTEAD}" if any(map(_is_away, _causes(error))) else ""


def _is_away(link: BaseException) -> bool:
    if isinstance(link, HfHubHTTPError):
        return link.response.status_code in AWAY
    return isinstance(link, HTTPError)


def _said(error: BaseException) -> str:
    return _discreet(str(error) or type(error).__name__, 480)


def _discreet(text: str, width: int) -> str:
    return textwrap.shorten(discreet(text), width).rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; the client wraps errors of its threads and its cache."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
