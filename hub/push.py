"""Upload an adapter: one commit of what others need, and nothing else of the directory it was trained in."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RevisionNotFoundError, SafetensorsParsingError
from huggingface_hub.hf_api import ModelInfo, SpaceInfo

from common.flags import dump_yaml, flag
from common.network import CONFIG_NAME, WEIGHTS_NAME, require_hub_access
from hub.access import HubError, hub_errors
from hub.card import CARD_NAME, GRID_NAME, addressed, model_card
from hub.concepts import KOHYA_NAME, kohya_name
from hub.files import check_file, read_header, refuse_links_out
from hub.licences import licence_by_hand, with_licence
from hub.notes import merge_notes, read_notes, with_notes
from hub.provenance import what_adapter_says
from hub.results import RESULTS_NAME, read_results

SETTINGS_NAME = "config.yaml"
CRITIC_FILES = (f"critic/{CONFIG_NAME}", f"critic/{WEIGHTS_NAME}")
ADAPTER_FILES = (
    LORA_WEIGHT_NAME_SAFE,
    KOHYA_NAME,
    CARD_NAME,
    RESULTS_NAME,
    SETTINGS_NAME,
    GRID_NAME,
    *CRITIC_FILES,
)
"""The only files of an adapter's directory that are uploaded and fetched back, with that in kohya's format
which is called after the concept."""


@dataclass(frozen=True)
class HubConfig:
    """Hugging Face Hub."""

    push_to_hub: bool = flag(
        False, help="Upload the adapter to the Hub once everything is written.", published=None
    )
    hub_model_id: str | None = flag(
        None,
        help="Repository to upload to, made if there is none. Default: the last part of --output_dir.",
        published=None,
    )
    hub_private_repo: bool = flag(False, help="Make a new repository private.", published=None)
    hub_token: str | None = flag(
        None,
        help="Token to upload with. Default: the one of `hf auth login`, which no process list shows.",
        secret=True,
    )


def push_adapter(
    directory: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    again: str | None = None,
) -> str:
    """Upload a directory's adapter in one commit, making the repository if there is none. The directory is
    not changed.

    The card names the repository. It keeps people's notes and licence in the card on the Hub (`hub.notes`,
    `hub.licences`); a licence in this directory's card wins. `config.yaml`
    has names in place of local paths. Files of an earlier push that the directory no longer has are deleted;
    other files of the repository are not touched.

    Args:
        repo_id: "owner/name", or "name" under the token's own user.
        token: None is the one of `hf auth login` or of the environment variable HF_TOKEN.
        private: whether a new repository is private; None is the Hub's default.
        revision: the branch, made from main if there is none. Default: main.
        create_pr: open a pull request against main instead.
        commit_message: None says what is uploaded.
        again: the command that completes what fails. Default: this push's.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: there is no adapter, or it could not be uploaded; the message says why and how to try
            again.
    """
    directory = Path(directory)
    files = files_to_push(directory)
    card, settings = local_card(directory), public_settings(directory)
    if create_pr and revision:
        raise HubError("A pull request is against main; leave --revision or --create_pr out.")
    again = again or push_command(
        directory,
        repo_id,
        private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
    )
    with hub_errors(
        f"The adapter was not uploaded to {repo_id}",
        f"it is complete in {directory} and `{again}` uploads it",
    ):
        require_hub_access(token)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        head = branch_head(api, repo_id, revision)
        there = names_there(head)
        if CARD_NAME in there:
            theirs = fetch_card(api, head)
            card = with_notes(card, merge_notes(read_notes(theirs), read_notes(card)))
            card = with_licence(card, licence_by_hand(card) or licence_by_hand(theirs))
        contents: dict[str, Path | bytes] = {
            name: directory / name for name in files if name != SETTINGS_NAME
        }
        contents[CARD_NAME] = addressed(card, repo_id, revision).encode()
        if SETTINGS_NAME in files and settings:
            contents[SETTINGS_NAME] = dump_yaml(settings).encode()
        stale = sorted({*ADAPTER_FILES, kohya_name_there(api, head)} & there - contents.keys())
        made = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message or "Upload the adapter",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
    return made.pr_url or made.commit_url


def files_to_push(directory: Path) -> list[str]:
    """The files of a directory to upload, all of them readable.

    Raises:
        ValueError: there is no adapter, a weight file is damaged, or a file is a link out of the directory.
    """
    refuse_links_out(directory, ADAPTER_FILES)
    header = read_header(directory / LORA_WEIGHT_NAME_SAFE)
    critic = CRITIC_FILES if all((directory / name).is_file() for name in CRITIC_FILES) else ()
    files = [
        name
        for name in dict.fromkeys((*ADAPTER_FILES, kohya_name(header)))
        if (directory / name).is_file() and (name in critic or name not in CRITIC_FILES)
    ]
    refuse_links_out(directory, files)
    for name in files:
        if name.endswith(".safetensors"):
            check_file(directory / name)
    return files


def local_card(directory: Path) -> str:
    """The directory's card, or one made from the adapter's files.

    Raises:
        ValueError: there is neither, or results.json is not JSON.
    """
    if (directory / CARD_NAME).is_file():
        return (directory / CARD_NAME).read_text(encoding="utf-8", errors="replace")
    said = what_adapter_says(directory)
    known = {
        "concept": said["concept"],
        "base_model_name_or_path": said["base"],
        "revision": said["revision"],
    }
    return str(model_card(read_results(directory) | known, directory))


def public_settings(directory: Path) -> dict[str, Any]:
    """The settings of the run, as its results publish them: nothing that is local to a machine.

    Raises:
        ValueError: results.json is not JSON.
    """
    return read_results(directory).get("settings") or {}


def branch_head(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo:
    """The content of a branch; a missing branch is made from main."""
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        if revision is None:
            raise
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.model_info(repo_id, revision=revision)


def names_there(head: ModelInfo) -> set[str]:
    """The names of a repository's files."""
    return {file.rfilename for file in head.siblings or []}


def kohya_name_there(api: HfApi, head: ModelInfo) -> str:
    """What the adapter on the Hub calls its file in kohya's format, from its header alone."""
    if LORA_WEIGHT_NAME_SAFE not in names_there(head):
        return KOHYA_NAME
    try:
        found = api.parse_safetensors_file_metadata(head.id, LORA_WEIGHT_NAME_SAFE, revision=head.sha)
    except SafetensorsParsingError:
        return KOHYA_NAME
    return kohya_name(found.metadata) if isinstance(found.metadata, dict) else KOHYA_NAME


def fetch_card(api: HfApi, head: ModelInfo | SpaceInfo, repo_type: str = "model") -> str:
    """The card as it is on the Hub now."""
    with tempfile.TemporaryDirectory() as aside:
        path = api.hf_hub_download(
            head.id, CARD_NAME, repo_type=repo_type, revision=head.sha, local_dir=aside
        )
        return Path(path).read_text(encoding="utf-8", errors="replace")


def push_command(
    directory: Path,
    repo_id: str,
    private: bool | None = None,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    space: bool = False,
    space_id: str | None = None,
) -> str:
    """The command line of the same push, with the token of `hf auth login` or HF_TOKEN."""
    words = ["python", "-m", "hub", "push", str(directory), "--hub_model_id", repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    words += ["--create_pr"] if create_pr else []
    words += ["--commit_message", commit_message] if commit_message else []
    words += ["--space"] if space else []
    words += ["--space_id", space_id] if space_id else []
    return shlex.join(words)
