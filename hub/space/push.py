"""Upload a Space: one commit that makes it show an adapter as it is on the Hub now."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from common.network import require_hub_access
from hub.access import HubError, account_of, hub_errors
from hub.card import CARD_NAME
from hub.files import refuse_links_out
from hub.notes import read_notes, with_notes
from hub.push import ADAPTER_FILES, fetch_card, push_command
from hub.space.about import read_about
from hub.space.bundle import APP_NAME, OWN_FOLDERS, SHOWN_NAME, check_base, space_card, space_files


def push_space(
    directory: str | Path,
    adapter_id: str,
    space_id: str | None = None,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Upload the page of an adapter that is on the Hub, making the Space if there is none.

    People's notes in the Space's README.md are kept; files of an earlier push that are no longer needed are
    deleted; other files of the Space are not touched.

    Args:
        directory: the adapter's.
        adapter_id: where `hub.push.push_adapter` has uploaded it.
        space_id: "owner/name", or "name" under the token's own user. Default: the adapter's.
        token: None is the one of `hf auth login` or of the environment variable HF_TOKEN.
        private: whether a new Space is private; None is the Hub's default.
        revision: the branch that the adapter was uploaded to. Default: main.

    Returns:
        The address of the page.

    Raises:
        ValueError: no Space can load the adapter's base, or it could not be uploaded; the message says why
            and how to try again.
    """
    refuse_links_out(Path(directory), ADAPTER_FILES)
    about = read_about(Path(directory))
    check_base(about)
    again = push_command(
        Path(directory), adapter_id, private, revision=revision, space=True, space_id=space_id
    )
    with hub_errors(
        f"The Space {space_id or adapter_id} was not uploaded",
        f"the adapter was, and `{again}` uploads the Space too",
    ):
        require_hub_access(token)
        api = HfApi(token=token)
        adapter = api.model_info(whole_id(api, adapter_id), revision=revision)
        page = api.create_repo(
            space_id or adapter.id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        head = api.space_info(page.repo_id)
        there = {file.rfilename for file in head.siblings or []}
        if APP_NAME in there and SHOWN_NAME not in there:
            raise HubError(f"{page.repo_id} is a Space of something else; choose another with --space_id")
        contents = space_files(about, adapter.id, adapter.sha)
        card = space_card(about, adapter.id)
        if CARD_NAME in there:
            card = with_notes(card, read_notes(fetch_card(api, head, "space")))
        contents[CARD_NAME] = card.encode()
        stale = sorted(name for name in there - contents.keys() if name.split("/")[0] in OWN_FOLDERS)
        api.create_commit(
            page.repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Show {adapter.id}",
            repo_type="space",
            parent_commit=head.sha,
        )
    return str(page)


def whole_id(api: HfApi, repo_id: str) -> str:
    """An id with its owner; by default the token's user."""
    return repo_id if "/" in repo_id else f"{account_of(api)['name']}/{repo_id}"
