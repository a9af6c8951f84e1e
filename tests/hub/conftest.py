"""A Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopback import LoopbackHub


@pytest.fixture
def loopback_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The only Hub that huggingface_hub in this process knows; `loopback_hub.environment()` is for other processes."""
    with LoopbackHub(tmp_path_factory.mktemp("loopback_hub")) as hub:
        hub.redirect_client(monkeypatch)
        yield hub
