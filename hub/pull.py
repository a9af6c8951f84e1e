"""Fetch an adapter, a reward predictor or a critic from the Hub, complete or not at all."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from common.network import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, check_token
from common.weights import sha256
from hub.access import HubError, hub_errors
from hub.concepts import KOHYA_NAME
from hub.files import filled, read_file, require_empty
from hub.push import ADAPTER_FILES, kohya_name_there, names_there

RECORDS = ".cache"
"""The folder of the client's own records, in the one that it downloads to."""
CHECKPOINT_FILES = (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME)


def pull(
    repo_id: str, directory: str | Path, *, revision: str | None = None, token: str | None = None
) -> list[str]:
    """Fetch what `python -m hub push` uploads, and nothing else of the repository.

    Args:
        repo_id: "owner/name".
        directory: one that does not exist or is empty; it may be a link or a mount point.
        revision: a branch, a tag or a commit. Default: main.
        token: None is the one of `hf auth login` or of the environment variable HF_TOKEN, if there is any.

    Returns:
        The names of the files, in the directory.

    Raises:
        ValueError: there is nothing to fetch, it is damaged, it could not be fetched, or the directory is not
            empty.
    """
    directory = Path(directory)
    require_empty(directory)
    words = ["python", "-m", "hub", "pull", repo_id, "--output_dir", str(directory)]
    words += ["--revision", revision] if revision else []
    with hub_errors(
        f"{repo_id} was not fetched", f"nothing was written and `{shlex.join(words)}` tries again"
    ):
        validate_repo_id(repo_id)
        check_token(token)
        api = HfApi(token=token)
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        names = files_to_pull(names_there(info), kohya_name_there(api, info))
        with filled(directory, names[0]) as aside:
            for name in names:
                api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=aside)
            check_declared(aside, names, info)
            check_files(aside, names)
            shutil.rmtree(aside / RECORDS)
    return names


def files_to_pull(there: set[str], twin: str = KOHYA_NAME) -> list[str]:
    """The files of a repository to fetch.

    Args:
        twin: what its adapter calls its file in kohya's format.

    Raises:
        HubError: it holds neither an adapter nor a checkpoint of this project.
    """
    if LORA_WEIGHT_NAME_SAFE in there:
        return [name for name in dict.fromkeys((*ADAPTER_FILES, twin)) if name in there]
    if {CONFIG_NAME, WEIGHTS_NAME} <= there:
        return [name for name in CHECKPOINT_FILES if name in there]
    raise HubError(f"it holds neither {LORA_WEIGHT_NAME_SAFE} nor {CONFIG_NAME} with {WEIGHTS_NAME}")


def check_declared(directory: Path, names: list[str], info: ModelInfo) -> None:
    """Refuse files that are not those of the repository, which declares the SHA-256 of large ones.

    Raises:
        HubError: which file is wrong.
    """
    declared = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    for name in names:
        if name in declared and sha256(directory / name) != declared[name]:
            raise HubError(f"{name} is not the file that the Hub declares: its SHA-256 is another")


def check_files(directory: Path, names: list[str]) -> None:
    """Refuse weights that cannot be read or are not what was written, and a checkpoint of another project.

    Raises:
        HubError: which file is wrong.
    """
    for name in names:
        if name.endswith(".safetensors"):
            try:
                read_file(directory / name)
            except ValueError as error:
                raise HubError(f"{name} is not readable safetensors, or not what was written") from error
    if LORA_WEIGHT_NAME_SAFE not in names:
        checkpoint_kind(directory)


def checkpoint_kind(directory: Path) -> str:
    """The kind in a checkpoint's config.json, such as "critic".

    Raises:
        HubError: there is none.
    """
    try:
        config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{CONFIG_NAME} is missing or not JSON") from error
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise HubError(f"{CONFIG_NAME} does not say what kind of checkpoint it is")
    return kind
