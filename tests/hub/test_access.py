"""Whether an upload will be allowed is told before the hours of training, and nothing is made by asking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback import LoopbackHub

from common import hub_client
from hub.access import HubError, check_push

TOKENS = {
    "hf_write": ("someone", "write", {"makers": "contributor", "readers": "read"}),
    "hf_read": ("someone", "read", {"makers": "admin"}),
    "hf_other": ("other", "write"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Whose users may do different things."""
    with LoopbackHub(tmp_path, TOKENS, stall_seconds=0.02) as hub:
        hub.redirect_client(monkeypatch)
        yield hub


@pytest.mark.parametrize("exists", [False, True])
def test_a_push_that_will_be_allowed_passes(exists: bool, hub: LoopbackHub) -> None:
    for given, full in (
        ("adapter", "someone/adapter"),
        ("someone/adapter", "someone/adapter"),
        ("makers/adapter", "makers/adapter"),
    ):
        if exists:
            hub.api().create_repo(full, exist_ok=True, private=True)
        before = len(hub.requests)
        assert check_push(given) == full
        assert all(request.method == "GET" for request in hub.requests[before:])
        assert hub.api().repo_exists(full) == exists


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("someone/adapter", "hf_read", "settings/tokens"),
        ("theirs/adapter", "hf_write", r"\bsomeone, makers\b"),
        ("readers/adapter", "hf_write", r"\bsomeone, makers\b"),
        ("someone/taken", "hf_other", r"\(403\)"),
        ("someone/private", "hf_other", r"\bother\b.*\bother\b"),
        ("adapter", "hf_unknown", r"\(401\).*hf auth login"),
        ("adapter", "hf_write\n", r"^[^(]*hf auth login"),
        ("a b", "hf_write", "OWNER/NAME"),
        ("a/b/c", "hf_write", "OWNER/NAME"),
    ],
)
def test_one_that_will_be_refused_is_a_sentence(
    repo_id: str, token: str, message: str, hub: LoopbackHub
) -> None:
    hub.api().create_repo("someone/taken")
    hub.api().create_repo("someone/private", private=True)
    made = len(hub.sent("POST "))
    with pytest.raises(HubError, match=message) as caught:
        check_push(repo_id, token)
    sentence = str(caught.value)
    assert repo_id in sentence and "--push_to_hub" in sentence
    assert token.strip() not in sentence and "\n" not in sentence
    assert len(hub.sent("POST ")) == made


@pytest.mark.parametrize("kind", [500, 429, "timeout", "reset", "truncate"])
@pytest.mark.parametrize("where", ["whoami", "auth-check"])
def test_a_hub_that_fails_is_a_sentence(where: str, kind: int | str, hub: LoopbackHub) -> None:
    hub.api().create_repo("someone/adapter")
    hub.fail(where, status=kind)
    with pytest.raises(
        HubError, match=rf"\({kind}\b" if isinstance(kind, int) else r"\(\w+(Timeout|Error): "
    ):
        check_push("someone/adapter")
    assert check_push("someone/adapter") == "someone/adapter"


def test_a_hub_that_never_answers_is_waited_for_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PATIENCE", 0.1)
    with LoopbackHub(tmp_path, TOKENS, stall_seconds=600) as hub:  # longer than this test may take
        hub.redirect_client(monkeypatch)
        hub.fail("whoami", status="timeout")
        with pytest.raises(HubError, match=r"\(ReadTimeout: timed out\)"):
            check_push("someone/adapter")


def test_without_a_token_or_offline_nothing_is_asked(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="`hf auth login`"):
        check_push("adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        check_push("adapter", "hf_write")
    assert hub.requests == []
