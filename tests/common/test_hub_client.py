"""What the client makes of an answer before it reads its content."""

from __future__ import annotations

import pytest
from huggingface_hub.utils import httpx

from common import hub_client


@pytest.mark.parametrize(
    ("wait", "kept"),
    [("30", True), ("61", False), ("9" * 30, False), ("²", True), ("soon", True), ("", True)],
)
def test_only_a_wait_that_is_a_number_and_too_long_is_left_out(wait: str, kept: bool) -> None:
    request = httpx.Request("GET", "https://hub/api/models/x")
    response = httpx.Response(429, headers=[(b"retry-after", wait.encode("latin-1"))], request=request)
    hub_client._check(response)
    assert ("retry-after" in response.headers) is kept
