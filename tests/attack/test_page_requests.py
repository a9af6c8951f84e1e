"""Requests to the page of an adapter that no browser sends: each is answered in a sentence, or refused, and
leaves neither a traceback nor anything behind."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack import Tally, sample, share
from hostile import VALUES, as_text, nested
from huggingface_hub import constants

from hub.space.guard import EVENTS, own_hosts
from hub.space.studio import Studio

gradio = pytest.importorskip("gradio")

FIELDS = ("adapter", "prompt", "scale", "seed", "steps", "guidance")
USUAL = ["", "a cat", 1.0, 0, 1, 1.0]
API = "/gradio_api"


class Page:
    """A page that is served by this process, and how to ask it."""

    def __init__(self, blocks: Any, studio: Studio) -> None:
        self.blocks, self.studio, self.port = blocks, studio, blocks.server_port

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def event(self, data: list[Any], name: str = "draw") -> str:
        """How an event ends: "complete", "error", or the status of a refusal."""
        status, text = self.ask("POST", f"{API}/call/{name}", as_text({"data": data}).encode())
        if status != 200:
            return str(status)
        _, stream = self.ask("GET", f"{API}/call/{name}/{json.loads(text)['event_id']}")
        return re.findall(r"^event: (\w+)$", stream, re.MULTILINE)[-1]


@pytest.fixture(scope="module")
def page(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    from hub.space.about import About
    from hub.space.page import build_page, serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        studio = Studio(tiny_pipeline_dir)
        about = About(["cat"], "", None, ["a cat", "the cat"], ["a dog"])
        blocks = build_page(studio, "a base", "", about, False)
        serve(blocks)
        try:
            yield Page(blocks, studio)
        finally:
            blocks.close()


def test_what_is_sent_in_a_field(page: Page, tally: Tally, capfd: pytest.CaptureFixture[str]) -> None:
    attacks = [(at, value) for at in range(len(FIELDS)) for value in VALUES]
    for at, value in sample(attacks):
        ending = page.event([*USUAL[:at], value, *USUAL[at + 1 :]])
        assert ending in ("complete", "error", "400", "413"), (FIELDS[at], value, ending)
        tally("page requests", ending)
    assert page.event(USUAL) == "complete"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), None, "1", True, [], -0.1, 1.51])
def test_a_scale_that_is_none_is_refused(page: Page, value: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert page.event([*USUAL[:2], value, *USUAL[3:]]) == "error"
    assert "Traceback" not in capfd.readouterr().err


def test_samples_and_adapters_that_are_none(
    page: Page, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    """Events that the page sends and no program is told of."""
    events = [(number, len(fn.inputs)) for number, fn in page.blocks.fns.items() if len(fn.inputs) == 1]
    assert len(events) == 3
    for (number, _), value in sample([(event, value) for event in events for value in VALUES]):
        body = as_text({"data": [value], "fn_index": number, "session_hash": "x"}).encode()
        for place in ("run/predict", "queue/join"):
            status, _ = page.ask("POST", f"{API}/{place}", body)
            assert status in (200, 400, 404, 413, 500, 503)
            tally("page requests", str(status))
    assert page.event(USUAL) == "complete"
    assert "Traceback" not in capfd.readouterr().err


def routes(page: Page) -> list[tuple[str, str]]:
    """Every way to send something that Gradio has, this version's."""
    found = []
    waiting = list(page.blocks.app.routes)
    while waiting:
        route = waiting.pop()
        waiting += getattr(route, "routes", [])
        path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
        found += [
            (method, path if path.startswith("/") else f"/{path}")
            for method in sorted(getattr(route, "methods", None) or ())
            if method not in ("GET", "HEAD")
        ]
    return found


def test_nothing_is_taken_but_events(page: Page, tally: Tally, tmp_path: Path) -> None:
    upload = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
        + b"y" * 100_000
        + b"\r\n--x--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    usual = [
        ("POST", f"{API}/upload"),
        ("POST", "/upload"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("DELETE", "/"),
    ]
    for method, path in dict.fromkeys([*usual, *routes(page), *((m, f"{API}{p}") for m, p in routes(page))]):
        if method == "POST" and EVENTS.fullmatch(path):
            continue
        status, _ = page.ask(method, path, upload, kind)
        assert status in (403, 404, 405), (method, path, status)
        tally("page requests", str(status))
    assert not list(Path(page.blocks.GRADIO_CACHE).rglob("*.bin"))


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b'{"data": 1}',
    b'{"data": []}',
    b'{"data": {"a": 1}}',
    b'{"data": ["", "a", 1, 0, 1, 1, 1, 1]}',
    b'{"data": ["", "\\ud800", 1, 0, 1, 1]}',
    b'{"data": ["", "a", NaN, 0, 1, 1]}',
    b'{"data": [' + b"9" * 5000 + b"]}",
    b"[" * 50_000,
    json.dumps(nested(100)).encode(),
    b'{"data": ["' + b"x" * 70_000 + b'"]}',
    b"x" * 2_000_000,
    b'{"data": [], "fn_index": 99, "session_hash": "x"}',
    b'{"data": [], "fn_index": "x", "session_hash": []}',
    b'{"event_data": {}, "session_hash": "' + b"y" * 9000 + b'"}',
]


def test_bodies_that_are_no_events(page: Page, tally: Tally, capfd: pytest.CaptureFixture[str]) -> None:
    places = ["call/draw", "call/nothing", "queue/join", "run/draw", "cancel", "reset"]
    for place, body in sample([(place, body) for place in places for body in BODIES]):
        try:
            status, _ = page.ask("POST", f"{API}/{place}", body)
        except (BrokenPipeError, ConnectionResetError):  # told while it was still sending
            status = 413
        assert 200 <= status <= 503
        tally("page requests", str(status))
    said = capfd.readouterr().err
    assert not re.search(r'File "[^"]*/(hub|common|pipelines)/', said), said


FOREIGN = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "localhost.evil.example:{port}",
    "x.hf.space",
    "hf.space",
    "127.0.0.1@evil.example",
    "evil.example/127.0.0.1",
    "192.168.0.7",
    "0.0.0.0",
    "",
    " ",
    "localhost:x",
    "[::1",
    "ä.example",
    "localhost,evil.example",
    "a" * 5000,
]
OWN = ["localhost", "localhost:{port}", "127.0.0.1:{port}", "LOCALHOST:{port}", "[::1]:{port}", "localhost."]


def test_hosts_and_origins(page: Page, tally: Tally) -> None:
    def status_of(method: str, path: str, **headers: str) -> int:
        named = {name: text.format(port=page.port) for name, text in headers.items()}
        body = as_text({"data": USUAL}).encode() if method == "POST" else None
        return page.ask(method, path, body, named)[0]

    for path in ("/", "/config", f"{API}/info"):
        for host in FOREIGN:
            assert status_of("GET", path, Host=host.encode().decode("latin-1")) == 400, host
            tally("page requests", "400")
        for host in OWN:
            assert status_of("GET", path, Host=host) == 200, host
            tally("page requests", "200")
    for host in FOREIGN:
        if host.strip() and len(host) < 99 and host.isascii():
            assert status_of("POST", f"{API}/call/draw", Origin=f"http://{host}") == 403, host
            tally("page requests", "403")
    for origin in ("null", "file://", "https://evil.example"):
        assert status_of("POST", f"{API}/call/draw", Origin=origin) == 403
    assert status_of("POST", f"{API}/call/draw", Origin="http://localhost:{port}") == 200


def test_hosts_of_a_space_and_of_those_who_bind_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from hub.space.guard import Guard

    def answers(*named: str) -> set[str]:
        guard = Guard(None, own_hosts(named))
        return {
            host for host in ("owner-name.hf.space", "10.0.0.5:80", "page.example") if guard._is_own(host)
        }

    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert answers() == set() and answers("page.example") == {"page.example"}
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    assert answers() == {"10.0.0.5:80"}
    monkeypatch.setenv("SPACE_ID", "owner/name")
    assert answers() == {"10.0.0.5:80", "owner-name.hf.space"}


def resident() -> float:
    """Memory of this process in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_memory_does_not_grow(page: Page) -> None:
    def requests(first: int, count: int) -> None:
        for seed in range(first, first + count):
            assert page.event(["", f"a cat {seed}", 1.0, seed, 1, 1.0]) == "complete"

    requests(1000, share(100))  # more than the page keeps
    before = resident()
    requests(2000, share(200))
    assert resident() - before < 40
