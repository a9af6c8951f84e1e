"""Adapter files: diffusers' LoRA format with rank, alpha and targets in the header, and our own keys."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft.utils import get_peft_model_state_dict
from transformers import PreTrainedModel

from common.network import resolve_directory
from common.weights import HASH_KEY, TENSORS_KEY
from hub.checks import find_fault, loaded_adapters
from hub.concepts import KOHYA_NAME, kohya_name
from hub.files import UnreadableAdapter, read_file, read_header, read_names, write_file
from hub.formats import PEFT_NAME, as_diffusers_reads, decisive, is_kohya, what_else
from hub.names import in_text_model

RESERVED = {LORA_ADAPTER_METADATA_KEY, "format", HASH_KEY, TENSORS_KEY}
"""Header keys that are derived from the tensors."""
LOADING_FAILS = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError),
    AssertionError,  # of diffusers' converters
)
"""How diffusers says that a file does not fit a pipeline."""


class NoAdapter(ValueError):
    """A place that holds no adapter, or several and none by the usual name."""


class UnfitAdapter(ValueError):
    """An adapter that does not fit the pipeline as a whole, or that changes nothing."""


class Part(NamedTuple):
    """What an adapter has for one component of the pipeline.

    Attributes:
        layers: its matrices by module, with the component's spelling in diffusers (`SPELLINGS`).
        config: the settings of a `LoraConfig` for them.
    """

    layers: dict[str, torch.Tensor]
    config: dict[str, Any]


SPELLINGS = {
    "unet": (".lora.down.", ".lora.up."),
    "transformer": (".lora_A.", ".lora_B."),
    "text_encoder": (".lora_linear_layer.down.", ".lora_linear_layer.up."),
    "text_encoder_2": (".lora_linear_layer.down.", ".lora_linear_layer.up."),
}
"""What diffusers puts between a module and `weight`: of the matrices (rank, in, ...) and (out, rank, ...)."""


def save_adapter(
    directory: str | Path,
    denoiser: ModelMixin,
    adapter_name: str = "default",
    metadata: Mapping[str, str] | None = None,
    *,
    text_encoders: Mapping[str, PreTrainedModel] = {},
) -> Path:
    """Write the adapter as `pytorch_lora_weights.safetensors`, complete or not at all; the kohya files of an
    older one are removed.

    `pipe.load_lora_weights(directory)` restores it as it was trained, also if alpha differs from rank.

    Args:
        denoiser: the bare UNet or transformer (not a distributed wrapper) that carries the adapter.
        metadata: keys at the top level of the header, as `hub.header` makes them.
        text_encoders: by the pipeline's name; those of them that carry a part of the adapter, or all of it,
            are written too.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no such adapter, or a key of the metadata is taken.
    """
    kind = "unet" if isinstance(denoiser, UNet2DConditionModel) else "transformer"
    parts = {
        name: _part(component, adapter_name, SPELLINGS[name])
        for name, component in {kind: denoiser, **text_encoders}.items()
        if adapter_name in getattr(component, "peft_config", {})
    }
    if not parts:
        raise ValueError(f"The {kind} has no adapter named {adapter_name!r}.")
    return write_adapter(directory, parts, metadata or {})


def write_adapter(directory: str | Path, parts: Mapping[str, Part], metadata: Mapping[str, str]) -> Path:
    """Write matrices as `pytorch_lora_weights.safetensors`, complete or not at all; the kohya files of an
    older adapter are removed.

    Args:
        parts: by the pipeline's name of the component.
        metadata: keys at the top level of the header.

    Raises:
        ValueError: a key of the metadata is taken, or a matrix holds NaN or infinite values.
    """
    _check_keys(metadata)
    layers = {name: tensor for part in parts.values() for name, tensor in part.layers.items()}
    strange = next((name for name, tensor in layers.items() if not tensor.isfinite().all()), None)
    if strange is not None:
        raise ValueError(f"{strange} holds NaN or infinite values, so no adapter is written.")
    tensors = {
        in_text_model(f"{name}.{key}"): tensor.detach().cpu().contiguous()
        for name, part in parts.items()
        for key, tensor in part.layers.items()
    }
    config = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.config.items()}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(config, indent=2, sort_keys=True, default=sorted),
        "modelspec.date": datetime.date.today().isoformat(),
    }
    path = Path(directory) / LORA_WEIGHT_NAME_SAFE
    stale = kohya_files(directory)
    write_file(path, tensors, header | dict(metadata))
    for twin in stale:
        twin.unlink()
    return path


def update_adapter_metadata(directory: str | Path, metadata: Mapping[str, str]) -> None:
    """Set keys in the header of a directory's adapter and of its kohya file, which is called after the
    concept; a kill leaves the old files or the new ones.

    Raises:
        ValueError: there is no adapter, or a key is taken.
    """
    _check_keys(metadata)
    path = Path(directory) / LORA_WEIGHT_NAME_SAFE
    twins = kohya_files(directory)
    for file in (*twins, path):
        tensors, header = read_file(file)
        header |= metadata
        target = path if file == path else path.with_name(kohya_name(header))
        write_file(target, tensors, header)
        if file != target:
            file.unlink()


def kohya_files(directory: str | Path) -> list[Path]:
    """The files in kohya's format that belong to a directory's adapter."""
    try:
        header = read_header(Path(directory) / LORA_WEIGHT_NAME_SAFE)
    except UnreadableAdapter:
        header = {}
    names = dict.fromkeys((kohya_name(header), KOHYA_NAME))
    return [Path(directory) / name for name in names if (Path(directory) / name).is_file()]


def read_adapter_metadata(directory: str | Path, name: str = LORA_WEIGHT_NAME_SAFE) -> dict[str, Any]:
    """The header of a directory's adapter, the file of that name; `lora_adapter_metadata` (rank, alpha,
    targets as `unet.r`, …) is decoded.

    Raises:
        UnreadableAdapter: there is no adapter, or its file is not safetensors.
    """
    path = Path(directory) / name
    header: dict[str, Any] = read_header(path)
    if LORA_ADAPTER_METADATA_KEY in header:
        try:
            header[LORA_ADAPTER_METADATA_KEY] = json.loads(header[LORA_ADAPTER_METADATA_KEY])
        except (ValueError, RecursionError) as error:
            raise UnreadableAdapter(f"{path} is not an adapter: {error}") from error
        if not isinstance(header[LORA_ADAPTER_METADATA_KEY], dict):
            raise UnreadableAdapter(
                f"{path} is not an adapter: {LORA_ADAPTER_METADATA_KEY} in its header is not a JSON object"
            )
    return header


def load_adapter(
    pipe: DiffusionPipeline,
    name_or_path: str | Path,
    weight_name: str | None = None,
    revision: str | None = None,
) -> str:
    """Load an adapter as any user would, with `pipe.load_lora_weights`, and check that it is complete and
    changes something.

    Args:
        name_or_path: a directory or a file, or an id on the Hub.
        weight_name: which safetensors file. Default: `pytorch_lora_weights.safetensors`, or the only one of a
            directory.
        revision: of the Hub.

    Returns:
        The adapter's name in the pipeline.

    Raises:
        CheckpointError, NoAdapter, UnreadableAdapter: there is none that can be read.
        UnfitAdapter: it does not fit the pipeline as a whole, or it changes nothing; the pipeline is then as
            before.
    """
    path = find_adapter(name_or_path, weight_name, revision)
    tensors, header = read_file(path)
    if not tensors:
        raise UnfitAdapter(f"The adapter {path} holds no tensors; train it again, or fetch it again.")
    taken, cause = loaded_adapters(pipe), None
    adapter = next(name for name in (f"default_{i}" for i in itertools.count()) if name not in taken)
    with _quiet_loaders():
        try:
            with as_diffusers_reads(path, tensors) as file:
                pipe.load_lora_weights(
                    str(file.parent), weight_name=file.name, adapter_name=adapter, use_safetensors=True
                )
                fault = find_fault(pipe, adapter, file, tensors)
        except UnreadableAdapter:
            raise
        except LOADING_FAILS as error:
            fault, cause = (
                f"does not fit this pipeline ({textwrap.shorten(str(error), 240)}); load it into its own base.",
                error,
            )
        if fault and adapter in loaded_adapters(pipe):
            pipe.delete_adapters(adapter)
    if fault:
        fault = what_else(tensors) or fault
        base = header.get("base_model_name_or_path")
        raise UnfitAdapter(
            f"The adapter {path} {fault}" + (f" It says that it is for {base}." if base else "")
        ) from cause
    return adapter


def find_adapter(
    name_or_path: str | Path, weight_name: str | None = None, revision: str | None = None
) -> Path:
    """The adapter's file: the one that is named, or that in a directory, or fetched from the Hub.

    Raises:
        CheckpointError: there is no such directory, and the Hub has none or cannot be reached.
        NoAdapter: there is none, or there are several and none has the usual name.
    """
    if os.path.isfile(name_or_path):
        return Path(name_or_path)
    name = weight_name or LORA_WEIGHT_NAME_SAFE
    directory = resolve_directory(name_or_path, revision, [name])
    for usual in (name,) if weight_name else (name, PEFT_NAME):
        if (directory / usual).is_file():
            return directory / usual
    found = sorted(directory.glob("*.safetensors"))
    if len(found) > 1:
        found = [path for path in found if not _is_twin(path)] or found
    if weight_name or not found:
        raise NoAdapter(f"{name_or_path} holds no adapter: a directory with {name} is needed.")
    if len(found) > 1:
        raise NoAdapter(
            f"{name_or_path} holds {len(found)} safetensors files and none is called {name}; name the file itself."
        )
    return found[0]


def _is_twin(path: Path) -> bool:
    """Whether a file is in kohya's format; what cannot be read is not."""
    try:
        return is_kohya(read_names(path))
    except UnreadableAdapter:
        return False


def _part(component: ModelMixin | PreTrainedModel, adapter_name: str, spelling: tuple[str, str]) -> Part:
    """The adapter that a component carries."""
    # diffusers' own conversion renames the matrices of attention layers only, and of a file with both
    # spellings it loads only the other layers.
    layers = {
        name.replace(".lora_A.", spelling[0]).replace(".lora_B.", spelling[1]): tensor
        for name, tensor in get_peft_model_state_dict(component, adapter_name=adapter_name).items()
    }
    return Part(layers, decisive(component.peft_config[adapter_name]))


def _check_keys(metadata: Mapping[str, str]) -> None:
    taken = RESERVED & set(metadata)
    if taken:
        raise ValueError(f"The header key {min(taken)!r} is derived from the tensors and cannot be given.")


@contextmanager
def _quiet_loaders() -> Iterator[None]:
    """Silence warnings of diffusers, transformers and peft about what is checked here, about adapters that
    have nothing for the text encoder, and about others on it, which transformers takes for missing."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("diffusers", "transformers"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
