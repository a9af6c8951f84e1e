"""Why the Hub failed: the cause is named, no secret is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from common.hub_reasons import hub_reason, reason_of
from common.network import CheckpointError, resolve_directory


def answered(status: int, message: str, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub/api"))
    return kind("An error of the client", response=response, server_message=message)


@pytest.mark.parametrize(
    ("status", "message", "named"),
    [
        (401, "", "`hf auth login` again"),
        (
            403,
            "Access to model a/b is restricted. Visit it to ask.",
            "it says: Access to model a/b is restricted",
        ),
        (418, "", "(418: it does not say why)"),
        (500, "Out of disk", "(500: Out of disk)"),
    ],
)
def test_it_is_what_the_hub_says(status: int, message: str, named: str) -> None:
    error = answered(status, message, GatedRepoError if status == 403 else HfHubHTTPError)
    assert named in reason_of(error)
    try:
        raise LocalEntryNotFoundError("Look at your connection.\nAnd at your disk.") from error
    except LocalEntryNotFoundError as wrapped:
        assert named in reason_of(wrapped) == hub_reason(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        answered(403, "The token hf_secret may not do this"),
        answered(500, "hf_secret"),
        OSError("ProxyError: https://me:secret@proxy:3128 refused"),
        ValueError("hf_secret is no token"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_secret_is_repeated(error: Exception) -> None:
    assert "secret" not in reason_of(error) and "\n" not in reason_of(error)


def test_what_is_neither_here_nor_there_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"some/model is neither .*: the Hub is switched off by HF_HUB_OFFLINE"
    ):
        resolve_directory("some/model", None, ["config.json"])
    with pytest.raises(CheckpointError, match=r"OWNER/NAME"):
        resolve_directory("no such/place/at all", None, ["config.json"])
