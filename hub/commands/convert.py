"""`python -m hub convert`: an adapter for ComfyUI and AUTOMATIC1111."""

from __future__ import annotations

import argparse
from pathlib import Path

from hub.adapter import KOHYA_NAME
from hub.kohya import save_kohya


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "convert",
        help="Write an adapter in kohya's format, for ComfyUI and AUTOMATIC1111.",
        description="Writes an adapter in kohya's format, which ComfyUI and AUTOMATIC1111 load; diffusers loads it too.",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        required=True,
        metavar="DIR",
        help="Directory with pytorch_lora_weights.safetensors.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"The file to write. Default: {KOHYA_NAME} in the adapter's directory.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert.

    Raises:
        ValueError: there is no adapter that can be converted, or the output would replace a file or would not
            be found by the programs.
    """
    if args.output is not None and args.output.exists():
        raise ValueError(f"--output {args.output} exists; name another file, or delete it first.")
    if args.output is not None and args.output.suffix != ".safetensors":
        raise ValueError(
            f"--output {args.output} must end in .safetensors, or ComfyUI and AUTOMATIC1111 will not list it."
        )
    path = save_kohya(args.adapter, args.output)
    print(f"wrote {path}: put it among the LoRAs of ComfyUI (models/loras) or AUTOMATIC1111 (models/Lora).")
