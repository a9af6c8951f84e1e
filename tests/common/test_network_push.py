"""Uploads, against a small Hub on this machine that takes every file inline."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from common.network import CheckpointError, require_hub_access
from reward.predictor import RewardPredictor


class Hub(BaseHTTPRequestHandler):
    """Accepts one user's repositories; what is committed is in `files`."""

    files: dict[str, bytes]
    refuses: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).refuses:
            return self.answer({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"http://{self.headers['Host']}/me/{json.loads(body)['name']}"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                if (entry := json.loads(line))["key"] == "file":
                    type(self).files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/reward/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                }
            )
        return self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/reward", "sha": "0" * 40, "siblings": []})

    def answer(self, content: dict[str, object], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files, Hub.refuses = {}, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield Hub
    server.shutdown()
    server.server_close()


def predictor() -> RewardPredictor:
    torch.manual_seed(0)
    return RewardPredictor(
        4,
        8,
        12,
        width=8,
        condition_dim=16,
        prompts=["a café", "a tree"],
        origin={"base": {"name": "some/base"}},
    )


def test_what_is_uploaded_loads_and_has_a_card(hub: type[Hub], tmp_path: Path) -> None:
    pushed = predictor()
    url = pushed.push_to_hub("me/reward", token="hf_of_nobody", dtype=torch.float16)
    assert url.endswith("0" * 40)
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    for name, content in hub.files.items():
        assert b"hf_of_nobody" not in content
        (tmp_path / name).write_bytes(content)
    loaded = RewardPredictor.from_pretrained(tmp_path)
    assert loaded.config == pushed.config
    assert all(
        torch.equal(p, q.half().float())
        for p, q in zip(loaded.parameters(), pushed.parameters(), strict=True)
    )
    card = ModelCard(hub.files["README.md"].decode())
    assert (
        "reward-predictor" in card.data.tags
        and 'RewardPredictor.from_pretrained("me/reward")' in card.text
        and "a café" in card.text
    )


def test_a_refusal_is_a_sentence(hub: type[Hub]) -> None:
    hub.refuses = True
    with pytest.raises(CheckpointError, match="me/reward") as caught:
        predictor().push_to_hub("me/reward", token="hf_of_nobody")
    assert "\n" not in str(caught.value) and "hf_of_nobody" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_a_sentence(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="me/reward") as caught:
        predictor().push_to_hub("me/reward", token="hf_of_nobody")
    assert "\n" not in str(caught.value)


def test_without_a_token_or_offline_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="hf auth login"):
        predictor().push_to_hub("me/reward")
    require_hub_access("hf_of_nobody")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        require_hub_access("hf_of_nobody")
