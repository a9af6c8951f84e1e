"""Checks before an upload, and the Hub's errors as sentences that never show a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NotRequired, TypedDict

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from common.hub_reasons import HUB_ERRORS, UnreadableAnswer, readable_answers, reason_of
from common.network import require_hub_access
from common.schema import Misfit, Spelt, check_type

Name = Annotated[str, Spelt(r"[\w.-]{1,96}", "a name on the Hub")]


class Organization(TypedDict):
    """One that a token's user belongs to."""

    name: Name
    roleInOrg: NotRequired[str]


class Access(TypedDict, total=False):
    """What a token may do."""

    role: str


class Authentication(TypedDict, total=False):
    """How the user is known."""

    accessToken: Access


class Account(TypedDict):
    """Whose token it is, as the Hub answers."""

    name: Name
    auth: NotRequired[Authentication]
    orgs: NotRequired[list[Organization]]


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
        account = account_of(api)
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


def account_of(api: HfApi) -> dict[str, Any]:
    """The token's `Account`.

    Raises:
        UnreadableAnswer: the Hub has answered something else.
    """
    account = api.whoami()
    try:
        check_type(account, Account)
    except Misfit as error:
        raise UnreadableAnswer from error
    return account


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Turn any error of the Hub or the network into one sentence: `what`, the reason, and `then`, which says
    what to do.

    Raises:
        HubError: something went wrong.
    """
    try:
        with readable_answers():
            yield
    except HUB_ERRORS as error:
        raise HubError(f"{what}: {reason_of(error)}; {then}.") from error
