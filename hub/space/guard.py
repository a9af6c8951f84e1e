"""What a page takes from the network: requests that name a host of its own, and events in JSON; nothing is
uploaded to it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from common.schema import parse_json

LARGEST_BODY = 64 * 1024
"""Bytes of a request, which is a prompt and a few numbers."""
EVENTS = re.compile(r"/gradio_api/((queue/join|reset|cancel)|(run|api|call|call/v2)/\w+)/?")
"""Where Gradio takes events."""
READING = {"GET", "HEAD"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SPACES = ".hf.space"
"""Hosts of Spaces, which the Hub names itself."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why


def own_hosts(named: Iterable[str] = ()) -> set[str]:
    """The hosts that a page answers to: this machine's loopback, those that are named, what the page is bound
    to by GRADIO_SERVER_NAME, and on the Hub those of Spaces. "*" is any address in numbers, which no name of
    another can be made to lead to."""
    bound = os.environ.get("GRADIO_SERVER_NAME", "")
    hosts = {*LOOPBACK, *(name.casefold().rstrip(".") for name in named)}
    if bound and bound.strip("[]") not in LOOPBACK:
        hosts |= {"*", bound.casefold()}
    if "SPACE_ID" in os.environ:
        hosts |= {SPACES}
    return hosts


class Guard:
    """An ASGI application in front of Gradio's.

    Args:
        hosts: by `own_hosts`.
    """

    def __init__(self, app: App, hosts: set[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._check_origin(scope)
            if scope["method"] not in READING:
                receive = await self._event(scope, receive)
        except Refused as refused:
            await _answer(send, refused)
        else:
            await self.app(scope, receive, send)

    def _check_origin(self, scope: Message) -> None:
        """Refuse a name that somebody else has made to lead here (DNS rebinding), and another site's page
        that sends events.

        Raises:
            Refused: the host is not one of the page's own.
        """
        hosts = _headers(scope, b"host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            raise Refused(400, "This page does not answer to this host; --allowed_hosts names further ones.")
        for origin in _headers(scope, b"origin"):
            if scope["method"] not in READING and not self._is_own(origin.partition("://")[2]):
                raise Refused(403, "This page takes nothing from pages of other hosts.")

    def _is_own(self, authority: str) -> bool:
        """Whether HOST or HOST:PORT is the page's own."""
        found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::\d+)?", authority.casefold(), re.ASCII)
        if not found:
            return False
        host = (found[1] or found[2]).rstrip(".")
        if host in self.hosts or (SPACES in self.hosts and host.endswith(SPACES)):
            return True
        return "*" in self.hosts and _is_address(host)

    async def _event(self, scope: Message, receive: Receive) -> Receive:
        """A request's events, read whole.

        Raises:
            Refused: it is no event, or is too large, or no JSON within bounds.
        """
        if scope["method"] != "POST" or not EVENTS.fullmatch(scope["path"]):
            raise Refused(405, "This page takes nothing here.")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return lambda: _once(message)
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                raise Refused(413, f"A request has at most {LARGEST_BODY} bytes.")
        try:
            parse_json(body or b"null", "The request")
        except ValueError as error:
            raise Refused(400, "The request is not JSON within bounds.") from error
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


async def _once(message: Message) -> Message:
    return message


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": refused.why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
