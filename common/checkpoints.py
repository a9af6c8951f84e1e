"""Training checkpoints: a safetensors file of tensors, a JSON file of numbers, and the hashes of both;
complete or absent."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.files import directory_aside, discard, disk_errors, make_directory, put

logger = logging.getLogger(__name__)

TENSORS, NUMBERS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments by parameter index, as a flat dictionary.

    bitsandbytes keeps the tensors of its quantization in a dictionary within; they are written beside the
    others, where it reads them too.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            inner = value if isinstance(value, dict) else {name: value}
            tensors |= {f"{i}.{key}": torch.as_tensor(tensor) for key, tensor in inner.items()}
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; a count of steps that was a plain number is one again."""
    state: dict[int, dict[str, torch.Tensor | int]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        plain = value.ndim == 0 and not value.is_floating_point()
        state.setdefault(int(index), {})[name] = int(value) if plain else value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def wind_forward(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> None:
    """Bring a new schedule to where it was after so many optimizer steps, which are not taken again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch misses those steps
        for _ in range(steps):
            schedule.step()


def numbered(entries: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Entries of one kind as a flat dictionary: `entry[name]` of the i-th goes under "i.name"."""
    return {f"{i}.{name}": value for i, entry in enumerate(entries) for name, value in entry.items()}


def entries_of(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The entries that `numbered` made flat."""
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        entries.setdefault(int(index), {})[name] = value
    return [entries[index] for index in sorted(entries)]


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those whose name begins with `prefix`, by what comes after it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Checkpoint(NamedTuple):
    """What a checkpoint holds: tensors by group, and numbers."""

    groups: dict[str, dict[str, torch.Tensor]]
    numbers: dict[str, Any]


def save_checkpoint(
    output_dir: Path,
    iteration: int,
    groups: dict[str, dict[str, torch.Tensor]],
    numbers: dict[str, Any],
    total_limit: int | None,
) -> Path:
    """Write `checkpoint-<iteration>` aside, sync it to the disk, rename it, and then `drop_oldest`.

    Raises:
        OSError: it could not be written, the disk being full for instance; the checkpoints before it are as
            they were.
    """
    final = output_dir / f"checkpoint-{iteration}"
    # Tensors may share memory (a slice of a batch); safetensors wants each on its own.
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous().clone()
        for group, part in groups.items()
        for name, tensor in part.items()
    }
    with disk_errors(final), directory_aside(make_directory(output_dir)) as aside:
        save_file(tensors, aside / TENSORS)
        (aside / NUMBERS).write_text(
            json.dumps(numbers | {"iteration": iteration}, indent=2) + "\n", encoding="utf-8"
        )
        (aside / MANIFEST).write_text(
            json.dumps({name: _digest(aside / name) for name in (TENSORS, NUMBERS)}, indent=2) + "\n",
            encoding="utf-8",
        )
        put(aside, final)
    drop_oldest(output_dir, iteration, total_limit)
    return final


def drop_oldest(output_dir: Path, iteration: int, total_limit: int | None) -> None:
    """Of the checkpoints up to an iteration, delete all but the newest `total_limit`; 0 and None keep all.

    Newer ones are of a run that has gone on from an older one, and stay until it writes them again.
    """
    own = [path for number, path in _numbered_checkpoints(output_dir) if number <= iteration]
    for old in own[:-total_limit] if total_limit else []:
        discard(old)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for _, path in _numbered_checkpoints(output_dir)]


def _numbered_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    found = {int(name[1]): path for path in output_dir.glob("*") if (name := NAME.fullmatch(path.name))}
    return [(number, path) for number, path in sorted(found.items()) if (path / MANIFEST).is_file()]


def latest_checkpoint(output_dir: Path) -> str:
    """What to say of the newest complete checkpoint; empty if there is none."""
    found = list_checkpoints(output_dir)
    return f"{found[-1]} is complete; go on with --resume_from_checkpoint latest." if found else ""


def load_checkpoint(output_dir: Path, name: str) -> Checkpoint:
    """The checkpoint of that name, which is a directory, its name within `output_dir`, or "latest": the
    newest that is not damaged.

    Raises:
        ValueError: there is none of that name, or it is damaged.
    """
    if name != "latest":
        try:
            return _read(Path(name) if Path(name).is_dir() else output_dir / name)
        except ValueError as error:
            raise ValueError(f"{error}; resume from another one.") from error
    for directory in reversed(list_checkpoints(output_dir)):
        try:
            return _read(directory)
        except ValueError as error:
            logger.warning(f"{error}; the one before it is taken.")
    raise ValueError(
        f"There is no checkpoint in {output_dir} to resume from; start without --resume_from_checkpoint."
    )


def _read(directory: Path) -> Checkpoint:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name in (TENSORS, NUMBERS):
            if _digest(directory / name) != manifest[name]:
                raise ValueError(f"{name} is not what was written")
        numbers = json.loads((directory / NUMBERS).read_text(encoding="utf-8"))
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(directory / TENSORS).items():
            group, tensor_name = key.split("/", 1)
            groups.setdefault(group, {})[tensor_name] = tensor
        if not isinstance(numbers, dict):
            raise ValueError(f"{NUMBERS} is no JSON object")
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The checkpoint {directory} is missing or damaged ({reason})") from error
    return Checkpoint(groups, numbers)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
