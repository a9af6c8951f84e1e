"""Checkpoints of our own small networks: `config.json` + `model.safetensors`, in a directory or on the Hub.

huggingface_hub's `PyTorchModelHubMixin` reads and writes the same two files and is not used: its
`save_pretrained` deletes the old config before the new one is written, and its `from_pretrained` drops
settings it does not know, loads weights that do not match (strict=False) and falls back to a pickle. Its
files would load here, and ours load there, but for our `kind`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import (
    HfApi,
    ModelCardData,
    constants,
    get_token,
    snapshot_download,
    try_to_load_from_cache,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from common.files import as_json, make_directory, why_unreadable, write_text, write_together
from common.hub_reasons import HUB_ERRORS, instead, readable_answers, reason_of
from common.weights import (
    TENSORS_KEY,
    DamagedWeights,
    check_download,
    check_hash,
    check_kinds,
    check_values,
    hashes,
    kinds_in,
    kinds_of,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
TAGS = ["text-to-image", "diffusers", "concept-erasure", "unlearning", "safetensors"]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for something else; the message says what to do."""


class Checkpoint(nn.Module):
    """A module that knows its own constructor arguments (`self.config`) and can be saved and loaded again."""

    config: dict[str, Any]
    kind = "network"

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, floating-point tensors cast to `dtype` if given; the
        weights' header has their hash."""
        directory = make_directory(Path(directory))
        tensors = {
            k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous().cpu()
            for k, v in self.state_dict().items()
        }
        weights = save(tensors, {TENSORS_KEY: hashes(tensors)[TENSORS_KEY]})
        config = as_json({"kind": self.kind, **self.config})
        write_together({directory / WEIGHTS_NAME: weights, directory / CONFIG_NAME: config})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Upload config, weights and a card in one commit, making the repository if there is none; returns
        the commit's address.

        Args:
            repo_id: "user/name", or "name" under the token's own user.
            private: whether a new repository is private; None is the Hub's default.
            token: None is the one of `hf auth login` or of the environment variable HF_TOKEN.
            commit_message: None says what is uploaded.
            dtype: floating-point tensors are cast to it.

        Raises:
            CheckpointError: there is no token, the Hub cannot be reached, or it refuses.
        """
        require_hub_access(token)
        api = HfApi(token=token)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            with tempfile.TemporaryDirectory() as directory:
                self.save_pretrained(directory, dtype=dtype)
                write_text(Path(directory) / CARD_NAME, self.card(repo_id))
                return str(
                    api.upload_folder(
                        repo_id=repo_id,
                        folder_path=directory,
                        commit_message=commit_message or f"Upload the {self.kind}",
                    )
                )
        except HUB_ERRORS as error:
            raise CheckpointError(
                f"The {self.kind} could not be uploaded to {repo_id}: {reason_of(error)}"
            ) from error

    def card(self, repo_id: str) -> str:
        """The repository's README: what it is, how it is loaded, its config."""
        name = type(self).__name__
        config = json.dumps(self.config, indent=2, ensure_ascii=False)
        return (
            f"---\n{ModelCardData(tags=[self.kind.replace(' ', '-'), *TAGS]).to_yaml()}\n---\n\n# {self.kind.capitalize()}\n\n"
            f"Load it with critic-guided-unlearning:\n\n```python\nfrom {type(self).__module__} import {name}\n\n"
            f'network = {name}.from_pretrained("{repo_id}")\n```\n\n## Config\n\n````json\n{config}\n````\n'
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str | None = None) -> Self:
        """Load from a local directory or a Hub id; weights must match the config exactly, and their hash if
        the file has one.

        Raises:
            CheckpointError: nothing is there, it is damaged, or it is a checkpoint of another kind.
        """
        directory = resolve_directory(name_or_path, revision, [CONFIG_NAME, WEIGHTS_NAME])
        try:
            config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
            kind = config.pop("kind", None) if isinstance(config, dict) else None
            if kind != cls.kind:
                raise CheckpointError(
                    f"{name_or_path} holds a {kind or 'file of unknown kind'}, not a {cls.kind}."
                )
            with torch.device("meta"):
                wanted = kinds_of(cls(**config))
            check_kinds("it", wanted, kinds_in(directory / WEIGHTS_NAME))
            check_hash("it", directory / WEIGHTS_NAME)
            module = cls(**config)
            module.load_state_dict(
                {
                    k: v.float() if v.is_floating_point() else v
                    for k, v in load_file(directory / WEIGHTS_NAME).items()
                }
            )
            check_values("it", module.state_dict())
        except CheckpointError:
            raise
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RuntimeError,
            ArithmeticError,
            SafetensorError,
        ) as error:
            reason = why_unreadable(directory / WEIGHTS_NAME, error)
            raise CheckpointError(
                f"{name_or_path} is not a readable {cls.kind} ({CONFIG_NAME} + {WEIGHTS_NAME}): {reason}"
            ) from error
        return module.eval()


@contextmanager
def downloads(cache_dir: Path | None = None, local_files_only: bool = False) -> Iterator[None]:
    """Within: all loaders, ours and those of diffusers, transformers and open_clip, keep what they fetch from
    the Hub in this directory, or fetch nothing. All of them read the client's own settings at each call.

    Args:
        cache_dir: None is the client's own.
    """
    kept = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    constants.HF_HUB_CACHE = str(cache_dir or kept[0])
    constants.HF_HUB_OFFLINE = local_files_only or kept[1]
    try:
        yield
    finally:
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = kept


def require_hub_access(token: str | None = None) -> None:
    """Whether an upload can be tried at all, to be asked before hours of training.

    Raises:
        CheckpointError: the Hub is switched off, there is no token, or it cannot be one; the message says
            what to do.
    """
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError("Nothing can be uploaded while HF_HUB_OFFLINE is set; unset it.")
    if not (token or get_token()):
        raise CheckpointError("There is no Hub token to upload with; run `hf auth login` or set HF_TOKEN.")
    check_token(token)


def check_token(token: str | None) -> None:
    """Refuse what cannot be a token: HTTP's own error would show it.

    Raises:
        CheckpointError: it holds a space, a line break, or something else that no token holds.
    """
    if token and not re.fullmatch("[!-~]+", token):
        raise CheckpointError(
            "The Hub token holds characters that no token holds; copy it again, or run `hf auth login`."
        )


def cached_revision(name_or_path: str | Path | None) -> str | None:
    """The commit that a checkpoint was loaded from just now, if it was loaded from the Hub's main branch."""
    if name_or_path is None or os.path.exists(name_or_path):
        return None
    cached = try_to_load_from_cache(str(name_or_path), CONFIG_NAME)
    return Path(cached).parent.name if isinstance(cached, str) else None


def resolve_directory(name_or_path: str | Path, revision: str | None, files: list[str]) -> Path:
    """The local directory itself, or the Hub's snapshot with just these files.

    Raises:
        CheckpointError: neither exists, the Hub cannot be reached, or a file is not what the Hub declares.
    """
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    try:
        with readable_answers():
            fetched = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=files))
        for name in files:
            if (fetched / name).is_file():
                check_download(fetched / name)
        return fetched
    except DamagedWeights as error:
        raise CheckpointError(f"{name_or_path} is damaged: {error}") from error
    except HUB_ERRORS as error:
        raise CheckpointError(
            f"{name_or_path} is neither a local directory nor a Hub repository that can be reached: "
            f"{reason_of(error)}{instead(error)}."
        ) from error
