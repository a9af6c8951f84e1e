"""`python -m hub convert`: an adapter for ComfyUI and AUTOMATIC1111."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.flags import Command, flag
from hub.kohya import save_kohya


@dataclass(frozen=True)
class ConvertConfig:
    """Conversion."""

    adapter: Path = flag(
        metavar="DIR", help="Directory of the adapter, or its file, in diffusers' format or peft's."
    )
    output: Path | None = flag(
        None,
        metavar="FILE",
        help="The file to write. Default: beside the adapter, called after the concept or the adapter's file.",
    )


def run(config: ConvertConfig) -> None:
    """Convert.

    Raises:
        ValueError: there is no adapter that can be converted, or the output would replace a file or would not
            be found by the programs.
    """
    output = config.output
    if output is not None and output.exists():
        raise ValueError(f"--output {output} exists; name another file, or delete it first.")
    if output is not None and output.suffix != ".safetensors":
        raise ValueError(
            f"--output {output} must end in .safetensors, or ComfyUI and AUTOMATIC1111 will not list it."
        )
    path = save_kohya(config.adapter, output)
    print(f"wrote {path}: put it among the LoRAs of ComfyUI (models/loras) or AUTOMATIC1111 (models/Lora).")


COMMAND = Command(
    ConvertConfig,
    run,
    help="Write an adapter in kohya's format, for ComfyUI and AUTOMATIC1111.",
    description="Writes an adapter in kohya's format, which ComfyUI, AUTOMATIC1111 and diffusers load.",
)
