"""Whether weights are whole: names, shapes and kinds of numbers, values, and the hash that a file carries.

Loaders fill what a file lacks with random numbers, or leave it empty, with a warning at most.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

HASH_KEY = "modelspec.hash_sha256"
"""ModelSpec's, in a header: SHA-256 of what follows the header, "0x" before it."""
TENSORS_KEY = "tensors_sha256"
"""Our own, in the header of every file that is written here: SHA-256 of the tensors' names, types and shapes
and of that hash."""
SHOWN, WIDTH = 3, 120
"""How many names a message gives, and how much of each."""
ADVICE = "fetch it again, or make it again."
USUAL_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""Of a file of weights in a repository of the Hub."""
SHA256 = re.compile("[0-9a-f]{64}")


class DamagedWeights(ValueError):
    """Weights that are not whole; the message is a sentence that says whose, what is wrong and what to do."""


class Kind(NamedTuple):
    """What a header says of a tensor; `whole`: whether its type is one of whole numbers or truth values."""

    shape: tuple[int, ...]
    whole: bool


def kinds_of(module: nn.Module) -> dict[str, Kind]:
    """Of a module's state, by name."""
    return {
        name: Kind(tuple(tensor.shape), not tensor.is_floating_point())
        for name, tensor in module.state_dict().items()
    }


def kinds_in(path: Path) -> dict[str, Kind]:
    """Of a safetensors file, by name; only its header is read.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Kind(tuple(part.get_shape()), part.get_dtype().startswith(("I", "U", "BOOL")))
            for name, part in parts.items()
        }


def check_kinds(whose: str, wanted: Mapping[str, Kind], found: Mapping[str, Kind]) -> None:
    """Refuse a file that is not that of a module, before any memory is taken for it.

    Args:
        whose: the beginning of the sentence, such as "The unet of DIR".
        wanted: by `kinds_of`.
        found: by `kinds_in`, or `kinds_of` another.

    Raises:
        DamagedWeights: names, shapes or kinds of numbers differ.
    """
    both = wanted.keys() & found.keys()
    _refuse(
        whose,
        {
            "lacks {} of its tensors": wanted.keys() - found.keys(),
            "has {} tensors that its config has no place for": found.keys() - wanted.keys(),
            "has {} of its tensors in another shape": [n for n in both if wanted[n].shape != found[n].shape],
            "has {} of its tensors as another kind of number": [
                n for n in both if wanted[n].whole != found[n].whole
            ],
        },
    )


def check_loaded(whose: str, info: Mapping[str, Any], beside: str = "") -> None:
    """Refuse what a loader reports.

    Args:
        whose: the beginning of the sentence, such as "The unet of DIR".
        info: what `from_pretrained(..., output_loading_info=True)` of diffusers or transformers returns.
        beside: what else a file may hold, as a regular expression of whole names.

    Raises:
        DamagedWeights: the file lacks tensors, has too many, or has some in another shape.
    """
    _refuse(
        whose,
        {
            "lacks {} of its tensors": info["missing_keys"],
            "has {} tensors that its config has no place for": [
                name for name in info["unexpected_keys"] if not re.fullmatch(beside, name)
            ],
            "has {} of its tensors in another shape": [name for name, *_ in info["mismatched_keys"]],
        },
    )


def check_floats(whose: str, files: Iterable[Path], module: nn.Module) -> None:
    """Refuse files that hold whole numbers in place of a module's weights: loaders take them as they are.

    Args:
        whose: the beginning of the sentence, such as "The unet of DIR".
        files: safetensors files that the module was loaded from, whatever they call its tensors.

    Raises:
        DamagedWeights: they do.
    """
    held = [*module.named_parameters(), *module.named_buffers()]
    usual = {name.rpartition(".")[2] for name, tensor in held if not tensor.is_floating_point()}
    found = {name for file in files for name, kind in kinds_in(file).items() if kind.whole}
    _refuse(
        whose,
        {
            "has {} of its tensors as another kind of number": [
                name for name in found if name.rpartition(".")[2] not in usual | {"position_ids"}
            ]
        },
    )


def check_values(whose: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse values that no weight has. Each is read once, and no memory is taken.

    Args:
        whose: the beginning of the sentence, such as "The unet of DIR".
        tensors: a state dict.

    Raises:
        DamagedWeights: some were never loaded, or hold NaN or infinite values.
    """
    absent = [name for name, tensor in tensors.items() if tensor.is_meta]
    _refuse(
        whose,
        {
            "lacks {} of its tensors": absent,
            "holds NaN or infinite values in {} of its tensors": [
                name for name in tensors.keys() - absent if not _is_finite(tensors[name])
            ],
        },
    )


def weight_files(place: str | Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a variant, or of none, in a directory, or in the cache of a Hub id that was
    loaded just now.

    NAME.VARIANT-00001-of-00002 is of a variant, and so is NAME-00001-of-00002.VARIANT.
    """
    if Path(place).is_dir():
        return [
            path
            for path in sorted(Path(place).glob("*.safetensors"))
            if path.name.removesuffix(".safetensors").partition(".")[2].partition("-")[0] == (variant or "")
        ]
    kept = [try_to_load_from_cache(str(place), name) for name in USUAL_NAMES]
    return [Path(path) for path in kept if isinstance(path, str)]


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Silence the warnings of diffusers and transformers about what is checked here."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The hashes of the safetensors file of these tensors, for its header."""
    content = memoryview(save(tensors))
    start = 8 + int.from_bytes(content[:8], "little")
    return _hashes(bytes(content[8:start]), hashlib.sha256(content[start:]).hexdigest())


def has_its_hashes(path: Path) -> bool:
    """Whether a safetensors file has the hashes that its header says; one whose header says none has.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    with safe_open(path, "pt") as opened:
        said = {
            key: value for key, value in (opened.metadata() or {}).items() if key in (HASH_KEY, TENSORS_KEY)
        }
    if not said:
        return True
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        found = _hashes(header, hashlib.file_digest(file, "sha256").hexdigest())
    return all(
        value.casefold().removeprefix("0x") == found[key].removeprefix("0x") for key, value in said.items()
    )


def _hashes(header: bytes, data: str) -> dict[str, str]:
    """Of a file with this header, and with this hash of what follows it."""
    said = json.loads(header)
    index = sorted([name, of["dtype"], of["shape"]] for name, of in said.items() if name != "__metadata__")
    return {
        HASH_KEY: f"0x{data}",
        TENSORS_KEY: hashlib.sha256(json.dumps([index, data]).encode()).hexdigest(),
    }


def check_hash(whose: str, path: Path) -> None:
    """Refuse a safetensors file whose tensors are not those that were written.

    Raises:
        DamagedWeights: they are not.
        OSError, SafetensorError: it cannot be read.
    """
    if not has_its_hashes(path):
        raise DamagedWeights(
            f"{whose} is not what was written: the SHA-256 of the tensors in {path.name} is another than its header says; {ADVICE}"
        )


def check_download(path: Path) -> None:
    """Refuse a file of the Hub's cache that is not what the Hub declares: the cache calls large files by the
    SHA-256 that they should have.

    Raises:
        DamagedWeights: it is another.
    """
    kept = path.resolve()
    if kept.parent.name == "blobs" and SHA256.fullmatch(kept.name) and sha256(kept) != kept.name:
        raise DamagedWeights(
            f"{path.name} is not the file that the Hub declares: its SHA-256 is another; delete {kept} and try again."
        )


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse(whose: str, faults: Mapping[str, Iterable[str]]) -> None:
    """Raise DamagedWeights if a fault, a verb with a place for the number, has any names."""
    said = []
    for verb, names in faults.items():
        if shown := sorted(" ".join(name.split())[:WIDTH] for name in names):
            more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            said.append(f"{verb.format(len(shown))} ({', '.join(shown[:SHOWN])}{more})")
    if said:
        raise DamagedWeights(f"{whose} {' and '.join(said)}; {ADVICE}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """`isfinite` of all values would take twenty times as long, and memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
