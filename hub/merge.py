"""Merge several adapters into one, equivalent to all of them under `pipe.set_adapters(names, weights)`."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from common.files import write_json
from common.names import public_name
from common.versions import versions
from hub.adapter import SPELLINGS, Part, find_adapter, read_adapter_metadata, write_adapter
from hub.card import save_model_card
from hub.factors import Factors, adapter_factors, by_component
from hub.files import require_empty
from hub.header import BASE_KEYS, results_header
from hub.kohya import save_twin
from hub.names import TEXT_ENCODERS
from hub.provenance import what_adapter_says
from hub.results import RESULTS_NAME

METHOD = "merging adapters into one"
TEXT_MODEL = "text_model."
"""In which some releases of transformers keep a text encoder's modules."""


def merge_adapters(
    adapters: Sequence[Path], weights: Sequence[float], output_dir: Path, rank: int | None = None
) -> dict[str, Any]:
    """Write the merge of several adapters, in both formats, with its header, results.json and card; return
    the results.

    The concepts are those of the adapters with a positive weight: with any other an adapter does not erase
    its own.

    Args:
        adapters: directories or files.
        weights: one for each adapter, as in `set_adapters`.
        output_dir: a new or an empty directory.
        rank: highest rank of a module; None keeps the sum of the adapters' ranks, which is exact.

    Raises:
        ValueError: there is no such adapter, or they cannot be merged; the message says why.
    """
    _check(adapters, weights, rank)
    require_empty(output_dir)
    files = [find_adapter(adapter) for adapter in adapters]
    said = [what_adapter_says(file.parent, file.name) for file in files]
    origin = _common_base(adapters, said)
    parts = [adapter_factors(file) for file in files]
    _check_kinds(files, parts)
    merged, error = merge_factors(parts, weights), None
    if rank is not None:
        merged, error = truncate(merged, rank)
    positive = [one["concept"] or [] for one, weight in zip(said, weights, strict=True) if weight > 0]
    results = {
        "concept": list(dict.fromkeys(concept for concepts in positive for concept in concepts)),
        **origin,
        "method": METHOD,
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(adapters, weights, output_dir, rank),
        "settings": {
            "adapters": [public_name(adapter) for adapter in adapters],
            "weights": list(weights),
            "rank": rank,
            **({"without_t5": True} if any(one["without_t5"] for one in said) else {}),
        },
        "relative_error": error,
        "versions": versions(),
    }
    write_adapter(
        output_dir,
        {component: to_file(part, component) for component, part in by_component(merged).items()},
        _agreed([read_adapter_metadata(file.parent, file.name) for file in files]) | results_header(results),
    )
    save_twin(output_dir)
    write_json(output_dir / RESULTS_NAME, results)
    save_model_card(results, output_dir)
    return results


def _command(adapters: Sequence[Path], weights: Sequence[float], output_dir: Path, rank: int | None) -> str:
    """The command of the same merge, by the adapters' names."""
    words = ["python", "-m", "hub", "merge", *map(public_name, adapters)]
    words += ["--weights", *(f"{weight:g}" for weight in weights)]
    words += ["--rank", str(rank)] if rank is not None else []
    return shlex.join([*words, "--output_dir", output_dir.resolve().name])


def merge_factors(adapters: Sequence[Mapping[str, Factors]], weights: Sequence[float]) -> dict[str, Factors]:
    """The weighted sum of the adapters' updates of each module, as one pair of matrices:

        Σ wᵢ sᵢ Bᵢ Aᵢ = [w₁ s₁ B₁ … wₙ sₙ Bₙ] [A₁; …; Aₙ],

    with A `down`, B `up` and s their scale. Rank and alpha are the sum of the ranks. A module that only some
    adapters have is the sum over these.

    Raises:
        ValueError: two adapters' matrices are for modules of different shapes.
    """
    merged: dict[str, Factors] = {}
    for module in dict.fromkeys(name for adapter in adapters for name in adapter):
        parts = [
            (weight, adapter[module])
            for adapter, weight in zip(adapters, weights, strict=True)
            if module in adapter
        ]
        shapes = {(*f.up.shape[:1], *f.up.shape[2:], *f.down.shape[1:]) for _, f in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"The adapters do not fit each other: {module} has the shapes "
                f"{' and '.join(map(str, sorted(shapes)))} (out, in, ...)."
            )
        down = torch.cat([f.down for _, f in parts])
        up = torch.cat([weight * f.scale * f.up for weight, f in parts], dim=1)
        merged[module] = Factors(down, up, alpha=len(down))
    return merged


def truncate(adapter: Mapping[str, Factors], rank: int) -> tuple[dict[str, Factors], float]:
    """The adapter's best approximation with no module above this rank, and its relative error.

    Of each update D = U S Vᵀ it keeps the largest singular values, which is the nearest matrix of that rank
    (Eckart and Young, 1936); the error is |D - D'| / |D|, the Frobenius norm over all modules.
    """
    kept: dict[str, Factors] = {}
    lost = total = 0.0
    for module, factors in adapter.items():
        left, values, right = _svd(factors)
        root = values[:rank].sqrt()
        up = (left[:, :rank] * root).reshape(len(left), len(root), *factors.up.shape[2:])
        down = (root[:, None] * right[:rank]).reshape(len(root), *factors.down.shape[1:])
        kept[module] = Factors(down.to(factors.down.dtype), up.to(factors.up.dtype), alpha=len(root))
        lost += values[rank:].square().sum().item()
        total += values.square().sum().item()
    return kept, math.sqrt(lost / total) if total else 0.0


def to_file(adapter: Mapping[str, Factors], component: str = "unet") -> Part:
    """A component's matrices by diffusers' names, and the settings that give each module its rank and its
    alpha."""
    down, up = SPELLINGS[component]
    layers: dict[str, torch.Tensor] = {}
    for name, f in adapter.items():
        layers |= {f"{name}{down}weight": f.down.contiguous(), f"{name}{up}weight": f.up.contiguous()}
    usual = {
        "r": Counter(f.rank for f in adapter.values()).most_common(1)[0][0],
        "lora_alpha": Counter(f.alpha for f in adapter.values()).most_common(1)[0][0],
    }
    config = usual | {
        "target_modules": sorted(name.removeprefix(TEXT_MODEL) for name in adapter),
        "rank_pattern": {_pattern(name): f.rank for name, f in adapter.items() if f.rank != usual["r"]},
        "alpha_pattern": {
            _pattern(name): f.alpha for name, f in adapter.items() if f.alpha != usual["lora_alpha"]
        },
    }
    return Part(layers, config)


def _pattern(module: str) -> str:
    """What finds this module alone, be it in a `text_model` or not."""
    return module.removeprefix(TEXT_MODEL) if module.startswith(TEXT_MODEL) else f"^{module}"


def _svd(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (out, k), S (k), Vᵀ (k, in * ...) of scale * up @ down in double precision, from the small product of
    their triangular factors."""
    up_basis, up_rest = torch.linalg.qr(factors.scale * factors.up.double().flatten(1))
    down_basis, down_rest = torch.linalg.qr(factors.down.double().flatten(1).T)
    left, values, right = torch.linalg.svd(up_rest @ down_rest.T, full_matrices=False)
    return up_basis @ left, values, right @ down_basis.T


def _check(adapters: Sequence[Path], weights: Sequence[float], rank: int | None) -> None:
    if len(adapters) < 2:
        raise ValueError("Merging needs at least two adapters.")
    if len(weights) != len(adapters):
        raise ValueError(
            f"--weights has {len(weights)} numbers for {len(adapters)} adapters; give one for each."
        )
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ValueError(
            f"--weights {' '.join(f'{weight:g}' for weight in weights)} must be finite numbers, at least one of "
            "them not 0."
        )
    if rank is not None and rank < 1:
        raise ValueError(f"--rank must be at least 1 (got {rank}).")


def _common_base(adapters: Sequence[Path], said: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Base and revision as results.json names them; an adapter that does not name its base fits any."""
    bases = {one["base"]: adapter for adapter, one in zip(adapters, said, strict=True) if one["base"]}
    if len(bases) > 1:
        listed = ", ".join(f"{adapter.name} for {base}" for base, adapter in bases.items())
        raise ValueError(f"The adapters are for different bases ({listed}) and cannot be merged.")
    revisions = {one["revision"] for one in said if one["base"]}
    return {
        "base_model_name_or_path": next(iter(bases), None),
        "revision": revisions.pop() if len(revisions) == 1 else None,
    }


def _check_kinds(files: Sequence[Path], adapters: Sequence[Mapping[str, Factors]]) -> None:
    found = zip(files, adapters, strict=True)
    kinds = {component: file for file, adapter in found for component in by_component(adapter)}
    denoisers = {component: file for component, file in kinds.items() if component not in TEXT_ENCODERS}
    if len(denoisers) > 1:
        listed = " and ".join(f"{file} for a {kind}" for kind, file in denoisers.items())
        raise ValueError(f"The adapters are for different kinds of networks ({listed}) and cannot be merged.")


def _agreed(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The keys about the base that all headers which have them agree on."""
    found = {key: {header[key] for header in headers if key in header} for key in BASE_KEYS}
    return {key: values.pop() for key, values in found.items() if len(values) == 1}
