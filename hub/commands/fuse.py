"""`python -m hub fuse`: a whole pipeline with the adapter in its weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.command_line import number
from common.names import hub_id
from hub.adapter import load_adapter
from hub.files import require_empty
from hub.fuse import fuse_adapter, save_pipeline
from hub.provenance import find_base, what_adapter_says
from pipelines.base import add_base_arguments, base_options, load_pipeline


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fuse",
        help="Write a whole pipeline with the adapter in its weights.",
        description="Writes a whole pipeline, in the diffusers format and safetensors only, with the adapter in its weights.",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        required=True,
        metavar="DIR",
        help="Directory with pytorch_lora_weights.safetensors.",
    )
    add_base_arguments(parser, default="what the adapter says")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="Where the pipeline is written: a new or an empty directory.",
    )
    parser.add_argument(
        "--scale", type=number, default=1.0, help="Weight of the adapter. Default: 1; 0 is the base."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Fuse.

    Raises:
        ValueError: adapter or base cannot be found, do not fit each other, or the output would replace
            something.
    """
    require_empty(args.output_dir)
    said = what_adapter_says(args.adapter)
    base = find_base(args.pretrained_model_name_or_path, said["base"])
    revision = args.revision or (None if args.pretrained_model_name_or_path else said["revision"])
    pipe = load_pipeline(base, revision, safety_checker=True, **base_options(args))
    fuse_adapter(pipe, load_adapter(pipe, args.adapter), args.scale)
    save_pipeline(pipe, args.output_dir, hub_id(str(base)) or "")
    print(f"wrote {args.output_dir}: a pipeline with the adapter at scale {args.scale:g} in its weights.")
