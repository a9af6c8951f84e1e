"""What a Hub can do wrong: each act is called in place of an answer, as a fault of the loopback Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from loopback_http import Handler

Act = Callable[[Handler], None]
SLOWLY = 0.05
"""Seconds between two bytes of a Hub that drips."""


def send(handler: Handler, content: bytes) -> None:
    handler.wfile.write(content)
    handler.wfile.flush()


def head(status: str = "200 OK", **headers: Any) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def until_closed(handler: Handler) -> Iterator[None]:
    """One turn after another, slowly, until the Hub ends."""
    while not handler.server.traffic.closing.wait(SLOWLY):
        yield


def says(content: bytes) -> Act:
    """Sends this and hangs up."""
    return lambda handler: send(handler, content)


def then_silent(content: bytes) -> Act:
    """Sends this and nothing more."""

    def act(handler: Handler) -> None:
        send(handler, content)
        handler.server.traffic.closing.wait()

    return act


def then_again(first: bytes, more: bytes) -> Act:
    """Sends the first, then the other again and again as fast as it can."""

    def act(handler: Handler) -> None:
        send(handler, first)
        while not handler.server.traffic.closing.is_set():
            send(handler, more)

    return act


def drips(first: bytes, drop: bytes) -> Act:
    """Sends the first, then a few bytes now and then."""

    def act(handler: Handler) -> None:
        send(handler, first)
        for _ in until_closed(handler):
            send(handler, drop)

    return act


def a_byte_more(handler: Handler) -> None:
    """Sends one byte of a file, which can be resumed, and hangs up."""
    send(
        handler,
        head("206 Partial Content", Content_Length=10**9, Content_Range=f"bytes 0-{10**9}/{10**9}") + b"x",
    )


def redirects(handler: Handler) -> None:
    """To itself, for ever."""
    send(handler, head("302 Found", Location=f"{handler.path}x", Content_Length=0))


def answers(value: Any, status: str = "200 OK", **headers: Any) -> Act:
    """Sends JSON."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return says(
        head(status, Content_Type="application/json", Content_Length=len(content), **headers) + content
    )


LONG = "a" * 100_000
INFO = {"_id": "1", "id": "someone/base", "sha": "0" * 40, "siblings": []}
ACTS: dict[str, Act] = {
    "silence": then_silent(b""),
    "silence after the first line": then_silent(b"HTTP/1.1 200 OK\r\n"),
    "silence after headers": then_silent(head(Content_Length=1000)),
    "silence within": then_silent(head(Content_Length=1000) + b"x" * 500),
    "silence without a length": then_silent(head()),
    "silence after a refusal": then_silent(head("404 Not Found", Content_Length=500)),
    "a dripping line": drips(b"HTTP/1.1 200 ", b"O"),
    "dripping headers": drips(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
    "dripping content": drips(head(Content_Length=10**6), b"x"),
    "a dripping file": drips(head(Content_Length=10**6, ETag='"a"', X_Repo_Commit="0" * 40), b"x"),
    "dripping chunks": drips(head(Transfer_Encoding="chunked"), b"1\r\nx\r\n"),
    "a byte more": a_byte_more,
    "endless headers": then_again(b"HTTP/1.1 200 OK\r\n", b"X-Long: " + b"x" * 1000 + b"\r\n"),
    "endless beginnings": then_again(b"", head("100 Continue") * 100),
    "endless content": then_again(head(), b"x" * 2**16),
    "endless chunks": then_again(head(Transfer_Encoding="chunked"), b"10000\r\n" + b"[" * 2**16 + b"\r\n"),
    "endless redirects": redirects,
    "a redirect to nowhere": says(head("302 Found", Location="http://127.0.0.1:9/", Content_Length=0)),
    "a redirect to no address": says(head("302 Found", Location="http://[::bad", Content_Length=0)),
    "a redirect to a file": says(head("302 Found", Location="file:///etc/passwd", Content_Length=0)),
    "a length too small": says(head(Content_Length=2) + b'{"id": 1}'),
    "a length too large": says(head(Content_Length=500) + b"{}"),
    "a huge length": then_silent(head(Content_Length=10**18) + b"{}"),
    "no length at all": says(head(Content_Length="many") + b"{}"),
    "closed": says(b""),
    "reset": Handler.reset,
    "broken TLS": says(b"\x15\x03\x03\x00\x02\x02\x28"),
    "another protocol": says(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "an unknown status": says(head("999 Perhaps", Content_Length=0)),
    "nothing": says(head(Content_Length=0)),
    "no content": says(head("204 No Content")),
    "HTML": answers(b"<html>Sign in to the network</html>"),
    "no UTF-8": answers(b"\xff\xfe{"),
    "no gzip": answers(b"{}", Content_Encoding="gzip"),
    "half JSON": answers(b'{"id": "someone/'),
    "deep JSON": answers(b"[" * 100_000),
    "null": answers(None),
    "a list": answers([]),
    "a list of nulls": answers([None] * 3),
    "a number": answers(1),
    "a text": answers("someone/base"),
    "an empty object": answers({}),
    "wrong types": answers(INFO | {"sha": [1], "siblings": 5, "lastModified": {}, "name": 3, "orgs": "x"}),
    "names that are null": answers(INFO | {"siblings": [{"rfilename": None}, None]}),
    "names that leave": answers(INFO | {"siblings": [{"rfilename": "../../../planted.json"}]}),
    "long names": answers(INFO | {"id": LONG, "sha": LONG, "siblings": [{"rfilename": LONG}]}),
    "a long header": answers({}, X_Error_Message="a" * 60_000),
    **{
        f"{status}": answers({"error": "hf_secret"}, f"{status} X")
        for status in (400, 401, 403, 404, 408, 410, 418, 451, 500, 502, 503, 504)
    },
    "429 for ever": answers({}, "429 Too Many", Retry_After=10**9),
    "429 by its limit": answers({}, "429 Too Many", RateLimit='"api";r=0;t=999999999'),
    "503 for ever": answers({}, "503 Later", Retry_After=10**9),
    "an error of many lines": answers({"error": ["a\nb"] * 50}, "500 X", X_Error_Message="hf_secret"),
}
"""By what the Hub does."""
