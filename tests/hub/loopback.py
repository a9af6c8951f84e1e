"""A Hugging Face Hub on this machine that huggingface_hub's own client talks to: repositories, commits,
tokens and faults are real."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from huggingface_hub import HfApi, close_session, constants, hf_api
from loopback_api import Account, HubServer, StorageServer
from loopback_http import Fault, FaultKind, Match, Request, Traffic
from loopback_store import Commit, Repository, Store

Owner = tuple[str, str] | tuple[str, str, Mapping[str, str]]
"""User and role of a token ("read" or "write"), and the user's role in each organization if there are any."""

TOKENS: dict[str, Owner] = {"hf_write": ("someone", "write"), "hf_read": ("someone", "read")}


class LoopbackHub:
    """A Hub that serves the repositories of a directory while it is entered.

    It has two origins, as the real one: `endpoint`, and `storage_endpoint` for LFS files, which refuses
        requests with a token.

    Args:
        directory: repositories and the client's HF_HOME are kept in it; tokens never are.
        tokens: whose they are.
        stall_seconds: for how long the fault "timeout" gives no answer before it hangs up.
    """

    def __init__(
        self, directory: Path, tokens: Mapping[str, Owner] = TOKENS, stall_seconds: float = 5.0
    ) -> None:
        self.directory, self.home = directory, directory / "home"
        self.store = Store(directory / "hub")
        self._traffic = Traffic(stall_seconds)
        self._storage = StorageServer(self._traffic, self.store)
        self._server = HubServer(
            self._traffic,
            self.store,
            self._storage,
            {token: Account(*account) for token, account in tokens.items()},
        )
        self.endpoint, self.storage_endpoint = self._server.address, self._storage.address

    def __enter__(self) -> Self:
        self._server.thread.start()
        self._storage.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """
        Raises:
            ExceptionGroup: an answer was a bug of the loopback Hub and the block itself went through.
        """
        self._server.close()
        self._storage.close()
        if error is None and self._traffic.errors:
            raise ExceptionGroup("The loopback Hub failed", self._traffic.errors)

    @property
    def requests(self) -> list[Request]:
        """All requests so far, to either origin, in the order they arrived."""
        return self._traffic.requests

    def sent(self, match: Match) -> list[Request]:
        """The requests whose "METHOD path" contains a string, or in which a pattern is found."""
        return [request for request in self.requests if request.matches(match)]

    def fail(self, match: Match, times: int = 1, status: FaultKind = 500) -> Fault:
        """Let the next `times` requests that match go wrong; the fault's `times` counts down.

        Args:
            match: a substring of "METHOD path", or a pattern to search for in it.
            status: an HTTP status is the answer; "timeout" is none for `stall_seconds`, "reset" closes the
                connection at once. With these the request is not carried out. With "truncate" it is, but half
                of the answer's body is missing. A function is called in place of an answer.
        """
        fault = Fault(match, times, status)
        self._traffic.faults.append(fault)
        return fault

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """
        Raises:
            LookupError: there is none.
        """
        repository = self.store.find(repo_type, repo_id)
        if repository is None:
            raise LookupError(f"The loopback Hub has no {repo_type} {repo_id}")
        return repository

    def history(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Newest first; the last is the Hub's own "initial commit"."""
        return list(self.repository(repo_id, repo_type).history(revision))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Contents by path, among them the .gitattributes that the Hub itself makes."""
        repository = self.repository(repo_id, repo_type)
        return {
            path: repository.blobs.read(entry.oid) for path, entry in repository.at(revision).files.items()
        }

    def api(self, token: str | bool = "hf_write") -> HfApi:
        """A client of this Hub; False sends no token."""
        return HfApi(endpoint=self.endpoint, token=token)

    def environment(self, token: str | None = "hf_write") -> dict[str, str]:
        """This process's environment for a child that is to know no other Hub."""
        settings = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        environment |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return environment | ({"HF_TOKEN": token} if token else {})

    def redirect_client(self, monkeypatch: pytest.MonkeyPatch, token: str | None = "hf_write") -> None:
        """Let huggingface_hub in this process know no other Hub, although it read its settings when it was
        imported."""
        values = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        }
        values |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
        places = {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets", "HF_TOKEN_PATH": "token"}
        places |= {"HF_STORED_TOKENS_PATH": "stored_tokens", "AGENT_HARNESSES_PATH": ".agent_harnesses.json"}
        for name, value in (
            values | {name: str(self.home / place) for name, place in places.items()}
        ).items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        close_session()
