"""`python -m hub fuse`: a whole pipeline with the adapter in its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.flags import Command, flag
from common.names import hub_id
from hub.adapter import find_adapter, load_adapter
from hub.files import require_empty
from hub.fuse import fuse_adapter, save_pipeline
from hub.provenance import AdapterBase, resolve_base, what_adapter_says
from pipelines.base import load_base, with_downloads


@dataclass(frozen=True)
class FusionConfig:
    """Fusion."""

    adapter: Path = flag(metavar="DIR", help="Directory with pytorch_lora_weights.safetensors, or a file.")
    output_dir: Path = flag(metavar="DIR", help="Where the pipeline is written: a new or an empty directory.")
    scale: float = flag(1.0, at_least=-100, at_most=100, help="Weight of the adapter; 0 is the base.")


@dataclass(frozen=True)
class FuseConfig:
    """All settings of the command."""

    fusion: FusionConfig
    base: AdapterBase


@with_downloads
def run(config: FuseConfig) -> None:
    """Fuse.

    Raises:
        ValueError: adapter or base cannot be found, do not fit each other, or the output would replace
            something.
    """
    given = config.fusion
    require_empty(given.output_dir)
    adapter = find_adapter(given.adapter)
    base = resolve_base(config.base, what_adapter_says(adapter.parent, adapter.name))
    pipe = load_base(base, safety_checker=True)
    fuse_adapter(pipe, load_adapter(pipe, adapter), given.scale)
    save_pipeline(pipe, given.output_dir, hub_id(str(base.name)) or "")
    print(f"wrote {given.output_dir}: a pipeline with the adapter at scale {given.scale:g} in its weights.")


COMMAND = Command(
    FuseConfig,
    run,
    help="Write a whole pipeline with the adapter in its weights.",
    description="Writes a whole pipeline, in the diffusers format and safetensors only, with the adapter in its "
    "weights.",
)
