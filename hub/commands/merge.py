"""`python -m hub merge`: one adapter out of several."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from common.flags import Command, flag
from hub.adapter import find_adapter
from hub.merge import merge_adapters
from hub.provenance import what_adapter_says


@dataclass(frozen=True)
class MergeConfig:
    """Merge."""

    adapters: tuple[Path, ...] = flag(
        positional=True,
        metavar="ADAPTER",
        help="Directories or files: in diffusers' format, kohya's or peft's.",
    )
    output_dir: Path = flag(metavar="DIR", help="Where the adapter is written: a new or an empty directory.")
    weights: tuple[float, ...] | None = flag(
        None,
        at_least=-100,
        at_most=100,
        metavar="WEIGHT",
        help="Factor of each adapter, in their order. Default: 1.",
    )
    rank: int | None = flag(
        None,
        at_least=1,
        help="Highest rank of a module; the error is reported. Default: the sum of the ranks, which is exact.",
    )


def run(config: MergeConfig) -> None:
    """Merge.

    Raises:
        ValueError: there are adapters that cannot be merged, or the output would be mixed with something.
    """
    weights = config.weights or [1.0] * len(config.adapters)
    results = merge_adapters(config.adapters, weights, config.output_dir, config.rank)
    files = {adapter: find_adapter(adapter) for adapter in config.adapters}
    silent = [
        str(adapter)
        for adapter, file in files.items()
        if not what_adapter_says(file.parent, file.name)["base"]
    ]
    if silent and results["base_model_name_or_path"]:
        print(
            f"warning: {', '.join(silent)} does not say which base it is for; it was taken to be "
            f"{results['base_model_name_or_path']}.",
            file=sys.stderr,
        )
    found = results["relative_error"]
    error = "" if found is None else f", at a relative error of {found:.2g}"
    print(f"wrote {config.output_dir}: one adapter out of {len(config.adapters)}{error}.")


COMMAND = Command(
    MergeConfig,
    run,
    help="Write one adapter that does what several do together.",
    description="Writes one adapter that does what several do together under `pipe.set_adapters(names, weights)`.",
)
