"""Checkpoints of our own small networks: `config.json` + `model.safetensors`, in a directory or on the Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or made for something else; the message says what to do."""


def write_aside(path: Path, write: Any) -> None:
    """Call `write(temporary_path)` and rename the result to `path`, so that a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    write(aside)
    os.replace(aside, path)


class Checkpoint(nn.Module):
    """A module that knows its own constructor arguments (`self.config`) and can be saved and loaded again."""

    config: dict[str, Any]
    kind = "network"

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, floating-point tensors cast to `dtype` if given."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous().cpu() for k, v in self.state_dict().items()}
        text = json.dumps({"kind": self.kind, **self.config}, indent=2, ensure_ascii=False) + "\n"
        write_aside(directory / WEIGHTS_NAME, lambda path: save_file(tensors, path))
        write_aside(directory / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, revision: str | None = None) -> Self:
        """Load from a local directory or a Hub id; weights must match the config exactly.

        Raises:
            CheckpointError: nothing is there, it is damaged, or it is a checkpoint of another kind.
        """
        directory = resolve_directory(name_or_path, revision, [CONFIG_NAME, WEIGHTS_NAME])
        try:
            config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
            kind = config.pop("kind", None) if isinstance(config, dict) else None
            if kind != cls.kind:
                raise CheckpointError(f"{name_or_path} holds a {kind or 'file of unknown kind'}, not a {cls.kind}.")
            module = cls(**config)
            module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(directory / WEIGHTS_NAME).items()})
        except CheckpointError:
            raise
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{name_or_path} is not a readable {cls.kind} ({CONFIG_NAME} + {WEIGHTS_NAME}): {reason}") from error
        return module.eval()


def resolve_directory(name_or_path: str | Path, revision: str | None, files: list[str]) -> Path:
    """The local directory itself, or the Hub's snapshot with just these files.

    Raises:
        CheckpointError: neither exists or the Hub cannot be reached.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=files))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{name_or_path} is neither a local directory nor a Hub repository that can be reached.") from error
