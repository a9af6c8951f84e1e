"""How long anything waits for the Hub, and how much it takes.

All calls of huggingface_hub, and so those of diffusers, transformers and open_clip, go through one client. It
is made here, within bounds; `common/__init__.py` sees to it before anything can be fetched.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory

PATIENCE = 60.0
"""Seconds without a byte after which the Hub counts as gone, where a call has no smaller limit of its own."""
SLOWEST = 1000
"""Bytes a second, over PATIENCE seconds of waiting: what comes more slowly would never end."""
MOST = 256 * 2**20
"""Bytes of an answer that is no file, or does not say how long it is."""
LONGEST = 900.0
"""Seconds that such an answer may take. A file that says how long it is may take as long as it goes on."""
BREAKS = 5
"""How often a file may break off, with nothing to speak of between, before it counts as lost."""
SAID = 60
"""Seconds that the Hub may ask to be left alone; where it asks for more, the client's own waits are kept."""
MOST_HEADERS = 2**17
"""Bytes before the content of an answer."""


def bound_the_client() -> None:
    """Let huggingface_hub's client be in these bounds from now on."""
    set_client_factory(_client)


@contextmanager
def patience() -> Iterator[None]:
    """Within: connections that others open without a limit have this one, as urllib for open_clip's tags."""
    kept = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(kept)


def _client() -> Any:
    client: Any = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], _begin], "response": [*hooks["response"], _check]}
    for transport in (client._transport, *client._mounts.values()):
        if transport is not None:
            # The client has no setting for it, and its own limits begin anew with every byte.
            transport._pool._network_backend = _Backend(transport._pool._network_backend)
    return client


class _Backend:
    """Connections that are watched."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *given: Any, timeout: float | None = None, **named: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(*given, timeout=_at_most(timeout), **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _Stream:
    """A connection whose bytes are counted, beside the time that is spent on waiting for them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._waited, self._received = 0.0, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begun = time.monotonic()
        content: bytes = self._stream.read(max_bytes, timeout=_at_most(timeout))
        if self._received:  # how long the first byte may take is the timeout's matter
            self._waited += time.monotonic() - begun
        self._received += len(content)
        _asked.headers -= len(content)
        if _asked.headers < 0:
            raise httpx.RemoteProtocolError("an answer that does not begin")
        if self._waited >= PATIENCE:
            if self._received < SLOWEST * self._waited:
                raise httpx.ReadTimeout(f"{self._received} bytes in {self._waited:.0f} seconds")
            self._waited, self._received = 0.0, 0
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._waited, self._received = 0.0, 0  # a new request
        self._stream.write(buffer, timeout=_at_most(timeout))

    def start_tls(self, *given: Any, timeout: float | None = None, **named: Any) -> _Stream:
        return _Stream(self._stream.start_tls(*given, timeout=_at_most(timeout), **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _at_most(timeout: float | None) -> float:
    return PATIENCE if timeout is None else min(timeout, PATIENCE)


class _Asked(threading.local):
    """What this thread is waiting for.

    Attributes:
        headers: bytes that may still come before the content of an answer.
    """

    headers: float = math.inf


_asked = _Asked()


def _begin(request: Any) -> None:
    _asked.headers = MOST_HEADERS


def _check(response: Any) -> None:
    """What the client does with every answer before it reads its content."""
    _asked.headers = math.inf
    waits = [
        response.headers.get("retry-after", ""),
        response.headers.get("ratelimit", "").rpartition("t=")[2],
    ]
    if any(wait.strip().isdecimal() and int(wait) > SAID for wait in waits):
        for name in ("retry-after", "ratelimit"):
            response.headers.pop(name, None)
    url = response.request.url
    is_file = "content-length" in response.headers and not url.path.startswith("/api/")
    response.stream = _Content(response.stream, f"{url.host}{url.path}", None if is_file else MOST)


_broken: Counter[str] = Counter()
"""How often in a row an answer has broken off with nothing to speak of, by address."""


class _Content(httpx.SyncByteStream):
    """The content of an answer, which ends."""

    def __init__(self, stream: Any, address: str, most: int | None) -> None:
        self._stream, self._address, self._most = stream, address, most

    def __iter__(self) -> Iterator[bytes]:
        received, begun = 0, time.monotonic()
        try:
            for content in self._stream:
                received += len(content)
                if self._most is not None and received > self._most:
                    raise httpx.DecodingError(f"an answer of more than {self._most // 2**20} MB")
                if self._most is not None and time.monotonic() - begun > LONGEST:
                    raise httpx.DecodingError(f"an answer that takes more than {LONGEST:.0f} seconds")
                yield content
        except httpx.TransportError as error:
            if received >= SLOWEST * PATIENCE:
                _broken.pop(self._address, None)
            _broken[self._address] += 1
            if _broken[self._address] > BREAKS:
                del _broken[self._address]
                raise httpx.ReadError(f"it broke off {BREAKS} times in a row; {error}") from error
            raise
        _broken.pop(self._address, None)

    def close(self) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
