"""A Hub whose answers are JSON of another type than its client takes: every command that asks it ends in a
sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from attack import Tally, sample
from hostile import TEXTS, as_text, nested
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http
from safetensors.torch import save_file

from common.network import resolve_directory
from hub.access import check_push
from hub.pull import pull
from hub.push import push_adapter
from hub.space.push import push_space

USUAL = {
    "name": "someone",
    "auth": {"accessToken": {"role": "write"}},
    "orgs": [{"name": "makers", "roleInOrg": "admin"}],
    "id": "someone/adapter",
    "url": "https://hub.example/someone/adapter",
    "sha": "0" * 40,
    "siblings": [{"rfilename": "pytorch_lora_weights.safetensors", "size": 10}],
    "tags": [],
    "cardData": {"license": "mit"},
    "lastModified": "2026-01-01T00:00:00.000Z",
    "commitUrl": "https://hub.example/c",
    "commitOid": "0" * 40,
    "files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": False}],
}
"""An answer that has what any command looks for."""
ANSWERS = [None, True, 0, -1.5, "", "text", [], [None], [[]], {}, {"a": None}, nested(200), *TEXTS[2:6]]

COMMANDS: dict[str, Callable[[Path], Any]] = {
    "check_push": lambda folder: check_push("adapter", "hf_x"),
    "push": lambda folder: push_adapter(folder, "someone/adapter", token="hf_x"),
    "push --revision": lambda folder: push_adapter(folder, "someone/adapter", token="hf_x", revision="b"),
    "push --space": lambda folder: push_space(folder, "adapter", token="hf_x"),
    "pull": lambda folder: pull("someone/adapter", folder / "pulled", token="hf_x"),
    "load": lambda folder: resolve_directory("someone/adapter", None, ["results.json"]),
}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Any], None]]:
    """Says what the Hub answers to everything from now on."""
    said = {"text": ""}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=said["text"], headers={"content-type": "application/json"})

    before = _http._GLOBAL_CLIENT_FACTORY
    set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answer)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield lambda value: said.update(text=as_text(value))
    set_client_factory(before)


def answers() -> list[Any]:
    """The usual one with a field of another type, and what is no such answer at all."""
    return [*ANSWERS, *({**USUAL, key: value} for key in USUAL for value in ANSWERS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_of_another_type_is_a_sentence(
    command: str, answering: Callable[[Any], None], tmp_path: Path, tally: Tally
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "results.json").write_text('{"concept": "cat", "base_model_name_or_path": "owner/base"}')
    for value in sample(answers()):
        answering(value)
        try:
            COMMANDS[command](tmp_path)
            tally("answers of the Hub", "taken")
        except ValueError as error:
            assert "\n" not in str(error) and "hf_x" not in str(error), str(error)[:500]
            tally("answers of the Hub", "refused")
