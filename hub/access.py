"""Checks before an upload, and the Hub's errors as sentences that never show a token."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from common.network import require_hub_access

REASONS = {
    401: "the Hub does not accept the token (401), so run `hf auth login` again",
    403: "the token may not do this (403), so use one with write access to the repository",
    404: "the Hub finds no such repository, revision or file, or the token may not see it (404)",
    409: "something else is changing the repository (409)",
    412: "the repository has changed meanwhile (412)",
    429: "the Hub takes no more requests for now (429)",
}
"""Why the Hub refused, by HTTP status."""


PATIENCE = 60.0
"""Seconds without a byte from the Hub after which it counts as gone; the client itself would wait forever."""


class HubError(ValueError):
    """An upload or a download failed; the message says why and what to do."""


def check_push(repo_id: str, token: str | None = None) -> str:
    """Check that a repository can be uploaded to, or made first, before hours of training. Nothing is made.

    Args:
        repo_id: "owner/name", or "name" under the token's own user.
        token: None is the one of `hf auth login` or of the environment variable HF_TOKEN.

    Returns:
        The id as "owner/name".

    Raises:
        ValueError: it cannot; the message says why.
    """
    with hub_errors(f"Nothing could be uploaded to {repo_id}", "leave --push_to_hub out to train without it"):
        validate_repo_id(repo_id)
        require_hub_access(token)
        api = HfApi(token=token)
        account = api.whoami()
        user = account["name"]
        if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise HubError(
                f"the token of {user} may only read; make one that may write at "
                "https://huggingface.co/settings/tokens"
            )
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        try:
            api.auth_check(repo_id, write=True)
        except RepositoryNotFoundError:
            own = [
                user,
                *(group["name"] for group in account.get("orgs") or [] if group.get("roleInOrg") != "read"),
            ]
            if repo_id.split("/")[0] not in own:
                raise HubError(
                    f"there is no such repository and {user} may make one only under {', '.join(own)}"
                ) from None
    return repo_id


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Turn any error of the Hub or the network into one sentence: `what`, the reason, and `then`, which says
    what to do.

    Raises:
        HubError: something went wrong.
    """
    get_session().timeout = PATIENCE
    try:
        yield
    except (HTTPError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise HubError(f"{what}: {_reason(error)}; {then}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, HFValidationError):
        return "it is not a repository id, which is NAME or OWNER/NAME in letters, digits, dots, - and _"
    if isinstance(error, LookupError | json.JSONDecodeError):
        return "the Hub's answer cannot be read"
    if isinstance(error, ValueError):
        return _said(error)
    for link in _causes(error):
        if isinstance(link, HfHubHTTPError):
            status = link.response.status_code
            reason = textwrap.shorten(link.server_message or "it does not say why", 240)
            refused = f"the Hub refused ({status}: {reason})"
            return REASONS.get(status, f"the Hub itself failed ({status})" if status >= 500 else refused)
        if isinstance(link, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so unset it"
        if isinstance(link, HTTPError):
            return f"the Hub cannot be reached or broke off ({type(link).__name__})"
    return _said(error)


def _said(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 480).rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; the client wraps errors of its threads and its cache."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
