"""What every request to the loopback Hub goes through: it is recorded, may meet a fault, and is answered."""

from __future__ import annotations

import contextlib
import http
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from loopback_store import Refusal

Match = str | re.Pattern[str]
"""A substring of "METHOD path", or a pattern to search for in it."""

FaultKind = int | Literal["timeout", "truncate", "reset"] | Callable[["Handler"], None]

MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Forbidden: you don't have the permission to do this",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
}
"""What the Hub says with a status; others are named by their HTTP phrase."""


@dataclass
class Request:
    """One request as it arrived: `path` with its query, headers by lower-case name; `status` is None if it
    got no answer."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    status: int | None = None

    def matches(self, match: Match) -> bool:
        line = f"{self.method} {self.path}"
        return match in line if isinstance(match, str) else match.search(line) is not None


@dataclass
class Fault:
    """What happens to the next `times` requests that match."""

    match: Match
    times: int
    kind: FaultKind


class Traffic:
    """The requests so far, the faults to come, and the errors in the loopback Hub's own code."""

    def __init__(self, stall_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[Exception] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def arrived(self, request: Request) -> FaultKind | None:
        """Record a request; returns the fault it meets, if any."""
        with self.lock:
            self.requests.append(request)
            fault = next(
                (fault for fault in self.faults if fault.times > 0 and request.matches(fault.match)), None
            )
            if fault is None:
                return None
            fault.times -= 1
            return fault.kind


class Server(ThreadingHTTPServer):
    """Answers on a free port of 127.0.0.1, in a thread of its own, until it is closed with all its
    connections."""

    request_queue_size = 64
    daemon_threads = False

    def __init__(self, handler: type[Handler], traffic: Traffic) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.traffic = traffic
        self.connections: set[socket.socket] = set()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.traffic.closing.set()
        self.shutdown()
        self.thread.join()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.traffic.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault have it or `route` answer it, and turns refusals into the Hub's error
    answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    record: Request
    body: bytes
    fault: FaultKind | None

    def route(self) -> None:
        """Answer `self.record`, whose body is `self.body`.

        Raises:
            Refusal: the answer is an error.
        """
        raise NotImplementedError

    def do_GET(self) -> None:
        traffic = self.server.traffic
        self.record = Request(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        self.fault = traffic.arrived(self.record)
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.record.body = self.rfile.read(length)
        if len(self.body) < length:
            raise ConnectionAbortedError("The client went away within its request")
        if self.fault == "timeout":
            traffic.closing.wait(traffic.stall_seconds)
            self.close_connection = True
        elif self.fault == "reset":
            self.reset()
        elif callable(self.fault):
            self.close_connection = True
            self.fault(self)
        else:
            self.answer_route()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer_route(self) -> None:
        try:
            if isinstance(self.fault, int):
                raise Refusal(self.fault, MESSAGES.get(self.fault) or http.HTTPStatus(self.fault).phrase)
            self.route()
        except Refusal as refusal:
            headers = {**refusal.headers, "X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            self.answer_json({"error": refusal.message}, refusal.status, headers)
        except ConnectionError:
            raise
        except Exception as error:
            self.server.traffic.errors.append(error)
            self.answer_json({"error": f"The loopback Hub failed: {error!r}"}, 500)

    def answer_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.answer(
            json.dumps(content).encode(),
            status,
            {"Content-Type": "application/json; charset=utf-8", **(headers or {})},
        )

    def answer_content(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The content, or the part of it from which the client asks to resume."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(content, 200, {"Accept-Ranges": "bytes", **(headers or {})})
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            raise Refusal(
                416, "Requested range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"}
            )
        self.answer(
            content[first : last + 1],
            206,
            {"Content-Range": f"bytes {first}-{last}/{len(content)}", **(headers or {})},
        )

    def answer(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        """Send an answer; to HEAD without its content, and with the fault "truncate" only half of it."""
        self.record.status = status
        truncated = self.fault == "truncate"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(max(len(content), 1) if truncated else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if truncated else content)
        self.close_connection = self.close_connection or truncated

    def reset(self) -> None:
        """Close the connection at once (RST), without the orderly end that closing normally sends."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Requests are recorded, not printed."""
