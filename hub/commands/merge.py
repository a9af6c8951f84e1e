"""`python -m hub merge`: one adapter out of several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hub.merge import merge_adapters
from hub.provenance import what_adapter_says


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "merge",
        help="Write one adapter that does what several do together.",
        description="Writes one adapter that does what several do together under `pipe.set_adapters(names, weights)`.",
    )
    parser.add_argument(
        "adapters",
        type=Path,
        nargs="+",
        metavar="ADAPTER",
        help="Directories with pytorch_lora_weights.safetensors.",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Where the adapter is written: a new or an empty directory.",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="WEIGHT",
        help="What each adapter is multiplied by, in their order. Default: 1.",
    )
    parser.add_argument(
        "--rank",
        type=int,
        help="The highest rank a module may have; the error is reported. Default: the sum of the ranks, which is exact.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Merge.

    Raises:
        ValueError: there are adapters that cannot be merged, or the output would be mixed with something.
    """
    weights = args.weights or [1.0] * len(args.adapters)
    results = merge_adapters(args.adapters, weights, args.output_dir, args.rank)
    silent = [str(directory) for directory in args.adapters if not what_adapter_says(directory)["base"]]
    if silent and results["base_model_name_or_path"]:
        print(
            f"warning: {', '.join(silent)} does not say which base it is for; it was taken to be {results['base_model_name_or_path']}.",
            file=sys.stderr,
        )
    error = (
        ""
        if results["relative_error"] is None
        else f", at a relative error of {results['relative_error']:.2g}"
    )
    print(f"wrote {args.output_dir}: one adapter out of {len(args.adapters)}{error}.")
