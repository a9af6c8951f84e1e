"""Everything that writes a file or a directory, each as one call: what the attacks on the disk go over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file

import common.files as files
from common.checkpoints import load_checkpoint, save_checkpoint
from common.files import UNFINISHED
from critic.network import ValueNetwork
from evaluation.artwork import Object, World
from evaluation.grid import Pair, before_after
from evaluation.judge import Judge
from evaluation.pareto import pareto
from evaluation.predictor.__main__ import METRICS, plot
from evaluation.probes.rows import Return, Row, save_samples
from evaluation.shards import Seen, Side
from hub.adapter import save_adapter, update_adapter_metadata
from hub.card import save_model_card
from hub.files import write_file
from hub.fuse import save_pipeline
from hub.kohya import save_kohya
from hub.merge import merge_adapters
from pipelines.base import load_pipeline
from reward.latents import Latents, write_shard
from reward.predictor import RewardPredictor
from training.config import parse_config
from training.diagnostics import Diagnostics
from training.results import save_config


@dataclass(frozen=True)
class Material:
    """What the writers write: made before any disk is full.

    Attributes:
        unet: with an adapter of which no matrix is zero.
        adapters: two directories with one each.
    """

    unet: UNet2DConditionModel
    pipe: DiffusionPipeline
    adapters: tuple[Path, Path]


def build(pipeline: Path, directory: Path) -> Material:
    """From a tiny pipeline; the adapters go to `directory`."""
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    for name in "ab":
        save_adapter(directory / name, unet, metadata={"concept": f'["{name}"]'})
    return Material(unet, load_pipeline(pipeline), (directory / "a", directory / "b"))


Write = Callable[[Material, Path, int], object]
"""Writes a version of something into a directory; two versions differ."""
WRITERS: dict[str, Write] = {}
NEW_ONLY = {"merge", "fuse"}
"""Writers that take an empty directory alone."""
GROWING = {"diagnostics"}
"""Of whose files half a last line may be there."""


def writer(write: Write) -> Write:
    WRITERS[write.__name__.replace("_", " ").strip()] = write
    return write


def picture(version: int, side: int = 16) -> Image.Image:
    rng = np.random.default_rng(version)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


@writer
def a_text(world: Material, to: Path, version: int) -> None:
    files.write_text(to / "a.txt", f"{version}\n" * 5000)


@writer
def a_json(world: Material, to: Path, version: int) -> None:
    files.write_json(to / "a.json", [version] * 5000)


@writer
def a_tensor_file(world: Material, to: Path, version: int) -> None:
    write_file(to / "a.safetensors", {"a": torch.full((5000,), float(version))}, {"version": str(version)})


@writer
def predictor(world: Material, to: Path, version: int) -> None:
    RewardPredictor(4, 8, 16, width=8, condition_dim=16, prompts=[str(version)]).save_pretrained(to)


@writer
def critic(world: Material, to: Path, version: int) -> None:
    ValueNetwork(4, 8, 16, width=8, concepts=[str(version)]).save_pretrained(to)


@writer
def judge(world: Material, to: Path, version: int) -> None:
    Judge({"style": ["a", str(version)]}, "{style}", 16, widths=(4, 8)).save_pretrained(to)


@writer
def checkpoint(world: Material, to: Path, version: int) -> None:
    save_checkpoint(to, version, {"lora": {"x": torch.full((5000,), float(version))}}, {}, 2)


@writer
def same_checkpoint_again(world: Material, to: Path, version: int) -> None:
    """As a run does that goes on from an older one, which is there all the time."""
    if not (to / "checkpoint-1").exists():
        save_checkpoint(to, 1, {"lora": {"x": torch.zeros(1)}}, {}, 2)
    save_checkpoint(to, 7, {"lora": {"x": torch.full((5000,), float(version))}}, {"version": version}, 2)


@writer
def adapter(world: Material, to: Path, version: int) -> None:
    save_adapter(to, world.unet, metadata={"concept": f'["{version}"]'})


@writer
def header(world: Material, to: Path, version: int) -> None:
    if not any(to.glob("*.safetensors")):
        save_adapter(to, world.unet)
    update_adapter_metadata(to, {"concept": f'["{version}"]'})


@writer
def kohya(world: Material, to: Path, version: int) -> None:
    save_kohya(world.adapters[version % 2], to / "for-others.safetensors")


@writer
def merge(world: Material, to: Path, version: int) -> None:
    merge_adapters(world.adapters, [1.0, 1.0], to / "merged")


@writer
def fuse(world: Material, to: Path, version: int) -> None:
    save_pipeline(world.pipe, to / "fused")


@writer
def card(world: Material, to: Path, version: int) -> None:
    save_model_card({"concept": [str(version)], "base_model_name_or_path": "a base"}, to)


@writer
def settings(world: Material, to: Path, version: int) -> None:
    save_config(parse_config(["--concept", str(version), "--output_dir", str(to)]))


@writer
def diagnostics(world: Material, to: Path, version: int) -> None:
    log = Diagnostics(to / "diagnostics.jsonl")
    log.begin(2)
    for iteration in range(100):
        log.write(iteration, {"version": version})


@writer
def grid(world: Material, to: Path, version: int) -> None:
    before_after([Pair("a cat", picture(version), picture(version + 1), True)], to / "grid.png", str(version))


@writer
def numbered_grid(world: Material, to: Path, version: int) -> None:
    strange = "\U000f0000"  # which no font has
    before_after([Pair(strange, picture(version), picture(version), True)], to / "grid.png", str(version))


@writer
def curve(world: Material, to: Path, version: int) -> None:
    side = {"UA": 50.0 + version, "IRA": 50.0, "CRA": 50.0, "scale": 1.0}
    side |= {"ci95": {name: [40.0, 60.0] for name in ("UA", "IRA", "CRA")}}
    pareto([side, side | {"scale": 0.5}], to / "pareto.png", str(version))


@writer
def samples(world: Material, to: Path, version: int) -> None:
    found = Return.of([[1.0]])
    save_samples(Row("x", found, found, before=[picture(version)], after=[picture(version)]), to / "x.png")


@writer
def predictor_plot(world: Material, to: Path, version: int) -> None:
    by_timestep = {str(t): dict.fromkeys(METRICS, 0.1 * version) for t in (1, 500)}
    found = {"sets": {"latents": 1}, "scorers": {"x": {"latents": {"by_timestep": by_timestep}}}}
    plot(found, to / "predictor.png")


@writer
def world_of_a_judge(world: Material, to: Path, version: int) -> None:
    World("{said}", {"cat": Object("a cat", (str(version),), (), "x")}).save(to)


@writer
def shard(world: Material, to: Path, version: int) -> None:
    side = Side(to / "side", {})
    jobs = [(version, seed) for seed in range(3)]
    side.images(version, jobs, lambda: [picture(seed) for seed in range(3)])
    side.write_seen(version, "0" * 16, Seen([{"style": "x"}] * 3, {"ssim": np.arange(3.0)}))


@writer
def latents(world: Material, to: Path, version: int) -> None:
    made = torch.full((4, 4, 8, 8), float(version))
    write_shard(to / "000000.safetensors", Latents.without_states(made, made.flatten(1) + 1))


# --- what may be there afterwards
# ----------------------------------------------------------------------------------


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file by its name within, but the locks."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in files.NOBODYS
    }


def check_whole(directory: Path, before: dict[str, bytes], name: str) -> None:
    """Every file is as it was, or new and whole, and none that was there is gone without one in its place;
    directories are complete or absent."""
    now = content_of(directory)
    for file, content in now.items():
        if before.get(file) != content and UNFINISHED not in file:
            read(directory / file, growing=name in GROWING)
    lost = {file for file in before if file not in now}
    assert not {file for file in lost if "checkpoint-" not in file and not file.endswith(".txt")}, lost
    for found in directory.glob("checkpoint-*"):
        assert load_checkpoint(directory, found.name)
    if before and "checkpoint" in name:
        assert load_checkpoint(directory, "latest")
    if (directory / "fused").exists():
        load_pipeline(directory / "fused")


def read(path: Path, growing: bool) -> None:
    """Or fail: the file is half."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        assert load_file(path)
    elif path.suffix == ".json":
        json.loads(content)
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    else:
        assert growing or not content or content.endswith(b"\n") or path.suffix == ".merges", path


def unfinished_in(directory: Path) -> list[str]:
    """What a process has left that did not end well."""
    return [path.name for path in directory.rglob("*") if path.name.startswith((UNFINISHED, ".tmp"))]
